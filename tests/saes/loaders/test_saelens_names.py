"""What SAELens's files call places and activation functions, and what the user may say of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.saes.loaders.layouts import saelens
from tests.saes.loaders.layouts.agreement import check, read, refusal

from saeclamp_saes import Options, Site
from saeclamp_saes.loaders import summarize
from saeclamp_saes.sae import TopK


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saelens.write(tmp_path / "sae", d_sae=24, architecture="jumprelu").path


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "cfg.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


HOOKS = {
    "model.layers.15": Site("resid_post", 15),
    "model.layers.15.mlp": Site("mlp_out_raw", 15),
    "transformer.h.15": Site("resid_post", 15),
    "gpt_neox.layers.15": Site("resid_post", 15),
    "blocks.15.hook_out": Site("resid_post", 15),
    "blocks.16.hook_in": Site("resid_post", 15),
    "blocks.15.attn.o.hook_in": Site("attn_z", 15),
    "embed.hook_out": Site("embed", 0),
}
"""In SAELens with a model of transformers, and with a TransformerBridge."""


@pytest.mark.parametrize(("hook", "site"), HOOKS.items())
def test_modules_and_the_bridges_hooks_are_places_too(folder: Path, hook: str, site: Site) -> None:
    change_config(folder, metadata={"hook_name": hook})
    assert summarize(folder).site == site


def test_what_the_user_says_of_the_place_comes_before_a_hook_that_is_not_known(folder: Path) -> None:
    change_config(folder, metadata={"hook_name": "decoder.layer.15"})
    assert summarize(folder, Options.parse("site=resid_post.15")).site == Site("resid_post", 15)


def test_a_k_that_no_relu_has_is_a_question_for_the_user(tmp_path: Path) -> None:
    written = saelens.write(tmp_path, architecture="topk")
    change_config(written.path, architecture="standard")
    assert "says 'standard', and gives k = 8, as of a TopK: add ?activation=topk&k=8 or ?activation=relu" in refusal(
        written.path
    )
    assert check(written, "saelens", "activation=topk&k=8").top_k == TopK(8)
    assert read(written.path, "activation=relu").top_k is None


def test_a_topk_that_no_file_names_can_be_said(tmp_path: Path) -> None:
    written = saelens.write(tmp_path, architecture="topk")
    change_config(written.path, architecture="standard", k=...)
    assert read(written.path).top_k is None
    assert check(written, "saelens", "activation=topk&k=8").architecture == "topk"
    assert "?activation=topk also needs how many activations are kept" in refusal(written.path, "activation=topk")
