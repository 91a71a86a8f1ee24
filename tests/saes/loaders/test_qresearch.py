"""Qresearch's SAE is recognised by what it has and by what it has not: a configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.saes.loaders.layouts import e2e, llama_scope, qresearch
from tests.saes.loaders.layouts.agreement import check, read, recognised, refusal

from saeclamp_saes import Site


def test_the_published_file_is_read_exactly(tmp_path: Path) -> None:
    sae = check(qresearch.write(tmp_path, layer=19), "qresearch")
    assert sae.reads == sae.writes == (Site("resid_post", 19),)
    assert (sae.kind, sae.architecture, sae.model_name) == ("sae", "relu", "DeepSeek-R1-Distill-Llama-8B")


def test_matrices_that_are_square_are_read_by_their_names(tmp_path: Path) -> None:
    check(qresearch.write(tmp_path, d_in=24, d_sae=24), "qresearch")


def test_a_renamed_file_needs_a_site(tmp_path: Path) -> None:
    path = qresearch.write(tmp_path, name="sae.pt").path
    says = refusal(path, "format=qresearch")
    assert says.endswith("does not say where it reads: add ?site=resid_post.19 (or the like).")
    assert read(path, "format=qresearch&site=resid_post.7").site == Site("resid_post", 7)


@pytest.mark.parametrize("name", ["sae.pt", "ae.pt", "final.pt", "Llama3_1-8B-l{layer}.pt", "x-SAE-l.pt"])
def test_another_name_is_not_guessed_to_be_this_family(tmp_path: Path, name: str) -> None:
    """dictionary_learning's AutoEncoderNew, Llama Scope and e2e_sae store the same four tensors."""
    path = qresearch.write(tmp_path, name=name).path
    assert recognised(path) == []
    assert "told by the configuration and the names it was published with, or by ?format=NAME" in refusal(path)
    assert "is in no layout that is known" in refusal(path, "site=resid_post.15")


def test_other_families_weights_without_their_configuration_are_refused(tmp_path: Path) -> None:
    scope = llama_scope.write(tmp_path / "scope").path
    (scope / "hyperparams.json").unlink()
    end_to_end = e2e.write(tmp_path / "e2e").path
    end_to_end.with_suffix(".yaml").unlink()
    for path in (scope, scope / "checkpoints" / "final.safetensors", end_to_end):
        assert "is in no layout that is known" in refusal(path, "site=resid_post.5")


@pytest.mark.parametrize(
    "where",
    [
        "hyperparams.json",
        "../hyperparams.json",
        "config.json",
        "cfg.json",
        "final_config.yaml",
        "DeepSeek-R1-Distill-Llama-8B-SAE-l5.yaml",
    ],
)
def test_a_configuration_means_that_it_is_another_family(tmp_path: Path, where: str) -> None:
    path = qresearch.write(tmp_path / "checkpoints").path
    (path.parent / where).write_text(json.dumps({"jump_relu_threshold": 0.3}))
    assert "qresearch" not in recognised(path)


def test_the_user_can_insist(tmp_path: Path) -> None:
    path = qresearch.write(tmp_path).path
    (tmp_path / "config.json").write_text("{}")
    assert read(path, "format=qresearch").site == Site("resid_post", 5)
