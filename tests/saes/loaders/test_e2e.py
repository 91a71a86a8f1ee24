"""Apollo's end-to-end SAEs."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from tests.saes.loaders.layouts import e2e
from tests.saes.loaders.layouts.agreement import check, read, refusal

from saeclamp_saes import Site


def test_one_of_a_runs_saes_is_chosen_by_layer_or_site(tmp_path: Path) -> None:
    for layer, written in e2e.write_run(tmp_path).items():
        for options in (f"layer={layer}", f"site=resid_pre.{layer}", f"site=resid_post.{layer - 1}"):
            sae = check(written, "e2e", options)
            assert sae.reads == sae.writes == (Site("resid_post", layer - 1),)
            assert (sae.kind, sae.architecture, sae.model_name) == ("sae", "relu", "gpt2-small")


def test_the_decoders_vectors_have_length_one(tmp_path: Path) -> None:
    path = e2e.write_run(tmp_path)[5].path
    torch.testing.assert_close(read(path, "layer=5").W_dec.norm(dim=1), torch.ones(40))


def test_a_run_with_one_sae_needs_no_choice(tmp_path: Path) -> None:
    assert check(e2e.write_run(tmp_path, layers=(5,))[5], "e2e").reads == (Site("resid_post", 4),)


def test_a_model_without_layer_norm_is_not_centred(tmp_path: Path) -> None:
    written = e2e.write_run(tmp_path, model_name="gemma-2b")[5]
    assert check(written, "e2e", "layer=5").input_norm.is_identity
    assert read(written.path, "layer=5&center=yes").input_norm.center


def test_the_published_form_is_read_too(tmp_path: Path) -> None:
    sae = check(e2e.write(tmp_path), "e2e")
    assert sae.reads == (Site("resid_post", 5),)
    assert sae.input_norm.center


def test_no_choice_and_a_choice_that_is_not_there_are_refused(tmp_path: Path) -> None:
    path = e2e.write_run(tmp_path)[5].path
    places = "holds the SAEs of blocks.10.hook_resid_pre, blocks.2.hook_resid_pre, blocks.5.hook_resid_pre: choose"
    for options in ("", "layer=3", "site=resid_post.7", "layer=5&site=resid_post.1"):
        assert places in refusal(path, options)


def test_a_published_one_without_a_single_position_asks_where_it_acts(tmp_path: Path) -> None:
    path = e2e.write(tmp_path).path
    for saes in ({"sae_positions": ["a", "b"]}, ["strange"], {"x": 1}):
        path.with_suffix(".yaml").write_text(yaml.safe_dump({"tlens_model_name": "gpt2-small", "saes": saes}))
        assert "does not say where it reads" in refusal(path)
    assert read(path, "site=resid_pre.6").reads == (Site("resid_post", 5),)


def test_a_broken_run_is_refused(tmp_path: Path) -> None:
    path = e2e.write_run(tmp_path)[5].path
    tensors = torch.load(path)
    torch.save(
        {name: tensor for name, tensor in tensors.items() if name != "blocks-5-hook_resid_pre.decoder.bias"}, path
    )
    assert "lacks blocks-5-hook_resid_pre.decoder.bias" in refusal(path, "layer=5")
