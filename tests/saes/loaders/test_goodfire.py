"""Goodfire's SAEs are a plain ReLU, and their names say where they act."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.saes.loaders.layouts import goodfire, pickles
from tests.saes.loaders.layouts.agreement import check, read, refusal

from saeclamp_saes import Site, read_sae
from saeclamp_saes.errors import PickledError


@pytest.mark.parametrize(
    ("name", "layer", "model"),
    [
        ("Llama-3.1-8B-Instruct-SAE-l{layer}.pth", 19, "Llama-3.1-8B-Instruct"),
        ("Llama-3.3-70B-Instruct-SAE-l{layer}.pt", 50, "Llama-3.3-70B-Instruct"),
    ],
)
def test_both_published_files_are_read_exactly(tmp_path: Path, name: str, layer: int, model: str) -> None:
    sae = check(goodfire.write(tmp_path, layer=layer, name=name), "goodfire")
    assert sae.reads == sae.writes == (Site("resid_post", layer),)
    assert (sae.kind, sae.architecture, sae.unit, sae.model_name) == ("sae", "relu", "native", model)


def test_matrices_that_are_square_are_read_by_their_names(tmp_path: Path) -> None:
    check(goodfire.write(tmp_path, d_in=24, d_sae=24), "goodfire")


def test_a_renamed_file_needs_a_site(tmp_path: Path) -> None:
    path = goodfire.write(tmp_path, name="Llama-3.1-8B.pth").path
    assert refusal(path).endswith("does not say where it reads: add ?site=resid_post.19 (or the like).")
    assert read(path, "site=resid_post.7").site == Site("resid_post", 7)
    sparse = goodfire.write(tmp_path, name="mine-l0_50.pth").path
    assert "does not say where it reads" in refusal(sparse)


def test_other_tensors_or_shapes_are_refused(tmp_path: Path) -> None:
    path = goodfire.write(tmp_path).path
    stored = torch.load(path)
    pickles.save(path, {**stored, "decoder_linear.weight": stored["decoder_linear.weight"].T.contiguous()})
    assert "decoder_linear.weight has shape (40, 16), expected (16, 40) (stored the other way round)" in refusal(path)
    pickles.save(path, {**stored, "scale": torch.ones(1)})
    assert "has scale, whose meaning is not known" in refusal(path)


def test_a_pickle_is_never_loaded_without_the_converter(tmp_path: Path) -> None:
    with pytest.raises(PickledError, match="saeclamp sae convert"):
        read_sae(goodfire.write(tmp_path).path)
