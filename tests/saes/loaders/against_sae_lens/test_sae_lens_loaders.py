"""
Other projects' files through sae-lens's loaders: equal, but for known differences, each tested to exist.

The files lie in a cache of the Hub, so that sae-lens's own loaders find them there by repository and name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.saes.loaders.against_sae_lens.agreement import SMALL, assert_agree, assert_other_features
from tests.saes.loaders.layouts import (
    Written,
    connor_rob,
    dictionary_learning,
    goodfire,
    llama_scope,
    llama_scope_r1,
    mntss,
    mwhanna,
    qresearch,
    qwen_scope,
    sparsify,
    tokens,
)
from tests.saes.loaders.layouts.agreement import read
from tests.saes.loaders.layouts.hub import Lens
from torch import Tensor

# ----------------------------------------------------------------------------------------------------------- sparsify


def test_sparsifys_loader_turns_a_decoder_that_is_stored_the_right_way_round(lens: Lens, tmp_path: Path) -> None:
    """The decoder is (d_sae, d_in) in the file already, so that sae-lens cannot load one that is not square."""
    written = sparsify.write(tmp_path / "files")
    lens.publish("EleutherAI/sae-pythia-70m-32k", tmp_path / "files")
    assert read(written.path).W_dec.shape == (40, 16)
    name = written.path.relative_to(tmp_path / "files").as_posix()
    with pytest.raises(RuntimeError, match="size mismatch for W_dec"):
        lens.load("sparsify", "EleutherAI/sae-pythia-70m-32k", name)


# -------------------------------------------------------------------------------------------------- dictionary_learning


@pytest.mark.parametrize(
    "dict_class",
    [
        "AutoEncoder",
        "AutoEncoderTopK",
        "BatchTopKSAE",
        "MatryoshkaBatchTopKSAE",
        "GatedAutoEncoder",
        "JumpReluAutoEncoder",
    ],
)
def test_dictionary_learning(lens: Lens, tmp_path: Path, dict_class: str) -> None:
    written = dictionary_learning.write(tmp_path / "files", dict_class=dict_class)
    lens.publish("canrager/lm_sae", tmp_path / "files")
    name = written.path.relative_to(tmp_path / "files").as_posix()
    assert_agree(lens.load("dictionary_learning_1", "canrager/lm_sae", name), written)


def test_dictionary_learnings_new_autoencoder_loses_its_bias(lens: Lens, tmp_path: Path) -> None:
    """Sae-lens looks for the decoder's bias under the older classes' names only, and then cannot load the SAE."""
    written = dictionary_learning.write(tmp_path / "files", dict_class="AutoEncoderNew")
    lens.publish("canrager/lm_sae", tmp_path / "files")
    assert read(written.path).b_dec.abs().min() > 0
    with pytest.raises(RuntimeError, match="b_dec"):
        lens.load("dictionary_learning_1", "canrager/lm_sae", written.path.relative_to(tmp_path / "files").as_posix())


# ----------------------------------------------------------------------------------------------- pickles without config


def test_qwen_scope(lens: Lens, tmp_path: Path) -> None:
    written = qwen_scope.write(tmp_path, k=8)
    repository = f"Qwen/{written.path.parent.name}"
    lens.publish(repository, written.path.parent)
    assert_agree(lens.load("qwen_scope", repository, "layer5.sae.pt", **SMALL), written)


@pytest.mark.parametrize(
    ("repository", "name", "layer"),
    [
        ("Goodfire/Llama-3.1-8B-Instruct-SAE-l19", "Llama-3.1-8B-Instruct-SAE-l19.pth", 19),
        ("Goodfire/Llama-3.3-70B-Instruct-SAE-l50", "Llama-3.3-70B-Instruct-SAE-l50.pt", 50),
    ],
)
def test_goodfire(lens: Lens, tmp_path: Path, repository: str, name: str, layer: int) -> None:
    written = goodfire.write(tmp_path / "files", name=name, layer=layer)
    lens.publish(repository, tmp_path / "files")
    assert_agree(lens.load("goodfire", repository, name, **SMALL), written)


def test_deepseek_r1(lens: Lens, tmp_path: Path) -> None:
    written = qresearch.write(tmp_path / "files", layer=19)
    lens.publish("qresearch/DeepSeek-R1-Distill-Llama-8B-SAE-l19", tmp_path / "files")
    repository = "qresearch/DeepSeek-R1-Distill-Llama-8B-SAE-l19"
    assert_agree(lens.load("deepseek_r1", repository, written.path.name, **SMALL), written)


def test_connor_rob(lens: Lens, tmp_path: Path) -> None:
    written = connor_rob.write(tmp_path / "files")
    lens.publish("ckkissane/attn-saes-gpt2-small-all-layers", tmp_path / "files")
    theirs = lens.load("connor_rob_hook_z", "ckkissane/attn-saes-gpt2-small-all-layers", written.path.name)
    x = tokens(16).float()
    torch.testing.assert_close(read(written.path).encode(x), theirs.encode(x.view(-1, 4, 4)), rtol=1e-4, atol=1e-4)


# -------------------------------------------------------------------------------------------------------- circuit-tracer


def test_mwhanna(lens: Lens, tmp_path: Path) -> None:
    written = mwhanna.write(tmp_path / "files")
    lens.publish("mwhanna/qwen3-0.6b-transcoders-lowl0", tmp_path / "files")
    repository = "mwhanna/qwen3-0.6b-transcoders-lowl0"
    assert_agree(lens.load("mwhanna_transcoder", repository, "layer_5.safetensors"), written)


@pytest.mark.parametrize("variant", [{"jumps": True}, {"skips": True}])
def test_mwhannas_loader_knows_neither_thresholds_nor_skips(
    lens: Lens, tmp_path: Path, variant: dict[str, bool]
) -> None:
    written = mwhanna.write(tmp_path / "files", **variant)
    lens.publish("mwhanna/qwen3-0.6b-transcoders-lowl0", tmp_path / "files")
    assert read(written.path).d_sae == 40
    with pytest.raises(RuntimeError, match="Unexpected key"):
        lens.load("mwhanna_transcoder", "mwhanna/qwen3-0.6b-transcoders-lowl0", "layer_5.safetensors")


def test_mntss(lens: Lens, tmp_path: Path) -> None:
    """Sae-lens adds the decoders of all layers up, so that it has activations only."""
    written = mntss.write(tmp_path / "files", layer=1)
    lens.publish("mntss/clt-gemma-2-2b-2.5M", tmp_path / "files")
    theirs = lens.load("mntss_clt_layer_transcoder", "mntss/clt-gemma-2-2b-2.5M", "1")
    ours, x = read(written.path, "layer=1"), tokens(16).float()
    torch.testing.assert_close(ours.encode(x), theirs.encode(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.W_dec.view(40, 3, 16).sum(dim=1), theirs.W_dec, rtol=1e-4, atol=1e-4)


def test_mntsss_loader_drops_thresholds(lens: Lens, tmp_path: Path) -> None:
    written = mntss.write(tmp_path / "files", layer=1, jumps=True)
    lens.publish("mntss/clt-gemma-2-2b-2.5M", tmp_path / "files")
    theirs = lens.load("mntss_clt_layer_transcoder", "mntss/clt-gemma-2-2b-2.5M", "1")
    assert_other_features(theirs, written, "layer=1")


# ----------------------------------------------------------------------------------------------------------- Llama Scope


def load_llama_scope(lens: Lens, files: Path, written: Written, length: float) -> Any:
    """Load it with the factor that the release's entry has: sqrt(d_in) over the mean length of its training vectors."""
    lens.publish("fnlp/Llama3_1-8B-Base-LXR-8x", files)
    theirs = lens.load("llama_scope", "fnlp/Llama3_1-8B-Base-LXR-8x", written.path.name)
    theirs.fold_activation_norm_scaling_factor(4 / length)
    return theirs


def assert_agree_where_both_are_active(theirs: Tensor, ours: Tensor) -> None:
    """Rows of length 1 are so to three digits only in bf16, and a gate may flip."""
    both = (theirs != 0) & (ours != 0)
    assert 0.05 < both.float().mean() < 0.95
    assert ((theirs != 0) == (ours != 0)).float().mean() > 0.99
    torch.testing.assert_close(ours[both], theirs[both], rtol=1e-3, atol=1e-3)


def test_llama_scope_where_decoder_rows_have_length_one(lens: Lens, tmp_path: Path) -> None:
    """Our activations are OpenMOSS's; sae-lens's are s/n times those, for s the factor and n the row's length."""
    written = llama_scope.write(tmp_path / "files", unit_rows=True, length_in=2.5, length_out=2.5)
    theirs = load_llama_scope(lens, tmp_path / "files", written, 2.5)
    x, s = tokens(16).float(), 4 / 2.5
    n = s * theirs.W_dec.norm(dim=1)
    assert_agree_where_both_are_active(theirs.encode(x) * n / s, read(written.path).encode(x))


def test_llama_scope_gates_elsewhere_in_sae_lens_where_they_have_not(lens: Lens, tmp_path: Path) -> None:
    """It compares activations with the threshold before they are measured along rows of length 1."""
    written = llama_scope.write(tmp_path / "files")
    assert_other_features(load_llama_scope(lens, tmp_path / "files", written, 2.5), written)


def load_r1(lens: Lens, files: Path, written: Written) -> Any:
    lens.publish("fnlp/Llama-Scope-R1-Distill", files)
    name = written.path.relative_to(files).as_posix()
    theirs = lens.load("llama_scope_r1_distill", "fnlp/Llama-Scope-R1-Distill", name)
    theirs.fold_activation_norm_scaling_factor(4 / llama_scope_r1.LENGTH)
    return theirs


def test_llama_scope_r1_where_decoder_rows_have_length_one(lens: Lens, tmp_path: Path) -> None:
    written = llama_scope_r1.write(tmp_path / "files", d_sae=128, unit_rows=True)
    theirs, x = load_r1(lens, tmp_path / "files", written), tokens(16).float()
    assert_agree_where_both_are_active(theirs.encode(x), read(written.path).encode(x))


def test_llama_scope_r1_gates_elsewhere_in_sae_lens_where_they_have_not(lens: Lens, tmp_path: Path) -> None:
    written = llama_scope_r1.write(tmp_path / "files", d_sae=128)
    assert_other_features(load_r1(lens, tmp_path / "files", written), written)
