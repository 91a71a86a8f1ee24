"""sparsify's and dictionary_learning's own files, and what their own code computes, each from an environment of its own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.saes.loaders.layouts.agreement import read
from tests.support.environments import python_with

from saeclamp_saes import Options, Site
from saeclamp_saes.loaders import summarize
from saeclamp_saes.sae import SAE

HERE = Path(__file__).parent
# each version is named, and nothing that they depend on is installed: it is in our own environment
SPARSIFY = ("eai-sparsify==1.3.3", "natsort==8.4.0", "schedulefree==1.4.1", "--no-deps")
DICTIONARY_LEARNING = ("dictionary-learning==0.1.0", "--no-deps")


def written(folder: Path, tool: str, requirements: tuple[str, ...]) -> Path:
    python = python_with(f"saes_with_{tool}", requirements, " ".join(requirements))
    command = [python, str(HERE / f"write_with_{tool}.py"), str(folder)]
    # sparsify decodes with a kernel unless it is told that there is no GPU
    environment = {**os.environ, "SPARSIFY_DISABLE_TRITON": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training run's folder of sparsify."""
    return written(tmp_path_factory.mktemp("sparsify"), "sparsify", SPARSIFY)


@pytest.fixture(scope="module")
def trainers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trainers' folders of dictionary_learning."""
    return written(tmp_path_factory.mktemp("dictionary_learning"), "dictionary_learning", DICTIONARY_LEARNING)


def assert_agree(sae: SAE, expected: Path, scale: float | torch.Tensor = 1.0) -> None:
    """
    Compare activations, and what is reconstructed from the library's own.

    scale: of their activations over ours
    """
    theirs = load_file(expected)
    x, acts = theirs["x"], theirs["acts"]
    assert 0.05 < (acts != 0).float().mean() < 0.95
    ours = sae.encode(x)
    assert torch.equal(ours != 0, acts != 0)
    torch.testing.assert_close(ours * scale, acts, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae.decode(acts / scale, x), theirs["out"], rtol=1e-4, atol=1e-4)


SPARSIFIED = {
    "layers.15": ("sae", Site("resid_post", 15), Site("resid_post", 15)),
    "layers.3.mlp": ("transcoder", Site("mlp_in", 3), Site("mlp_out_raw", 3)),
    "layers.4.mlp.down_proj": ("sae", Site("mlp_out_raw", 4), Site("mlp_out_raw", 4)),
    "layers.5": ("sae", Site("resid_post", 5), Site("resid_post", 5)),
    "layers.6.mlp": ("skip_transcoder", Site("mlp_in", 6), Site("mlp_out_raw", 6)),
    "layers.9/seed0": ("sae", Site("resid_post", 9), Site("resid_post", 9)),
    "layers.9/seed1": ("sae", Site("resid_post", 9), Site("resid_post", 9)),
}


@pytest.mark.parametrize(("module", "where"), SPARSIFIED.items())
def test_sparsify(run: Path, module: str, where: tuple[str, Site, Site]) -> None:
    sae = read(run / "run" / module)
    assert (sae.kind, sae.reads[0], sae.writes[0]) == where
    assert_agree(sae, run / "expected" / f"{module}.safetensors")


def test_a_layer_chooses_among_sparsifys_run(run: Path) -> None:
    assert summarize(run / "run", Options.parse("layer=15")).site == Site("resid_post", 15)


CLASSES = ["AutoEncoder", "GatedAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE"]


@pytest.mark.parametrize("name", [*CLASSES, *(f"{name}-backup" for name in CLASSES)])
def test_dictionary_learning(trainers: Path, name: str) -> None:
    sae = read(trainers / name)
    assert sae.site == Site("resid_post", 5)
    assert_agree(sae, trainers / "expected" / f"{name}.safetensors")


def test_dictionary_learnings_loader_measures_along_unit_rows_as_the_summary_says(trainers: Path) -> None:
    sae = read(trainers / "AutoEncoder")
    lengths = sae.W_dec.norm(dim=1)
    assert lengths.max() / lengths.min() > 1.2
    assert_agree(sae, trainers / "expected" / "AutoEncoder-loaded.safetensors", scale=lengths)
