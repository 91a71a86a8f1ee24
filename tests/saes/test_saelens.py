"""SAELens checkpoints are read exactly, or refused with a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.e2e.checkpoints import make_sae
from tests.reference import ReferenceSAE

from saeclamp_saes import Site, read_sae
from saeclamp_saes.formats import CheckpointError, summarize


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_sae(tmp_path / "sae", layer=5, d_in=16, d_sae=24, threshold=0.5)


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "cfg.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "sae_weights.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_activations_and_reconstructions_are_the_oracles(folder: Path, subtract: bool, dtype: torch.dtype) -> None:
    change_config(folder, apply_b_dec_to_input=subtract)
    change_tensors(folder, lambda tensors: tensors.update({name: t.to(dtype) for name, t in tensors.items()}))
    sae, reference = read_sae(folder), ReferenceSAE(folder)
    x = 3 * torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    acts = sae.encode(x)
    assert 0 < (acts > 0).float().mean() < 1
    assert torch.allclose(acts, reference.encode(x), atol=1e-5)
    assert torch.allclose(sae.decode(acts), reference.decode(acts), atol=1e-5)
    assert sae.W_enc.dtype is torch.float32


def test_a_standard_sae_is_a_relu(folder: Path) -> None:
    change_config(folder, architecture="standard")
    change_tensors(folder, lambda tensors: tensors.pop("threshold"))
    assert read_sae(folder).threshold.tolist() == [0.0] * 24


def test_a_negative_threshold_is_a_relu(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors["threshold"].fill_(-3.0))
    x = torch.randn(20, 16)
    assert torch.allclose(read_sae(folder).encode(x), ReferenceSAE(folder).encode(x), atol=1e-5)


def test_what_enters_a_block_is_what_the_one_before_it_leaves(folder: Path) -> None:
    change_config(folder, metadata={"hook_name": "blocks.5.hook_resid_pre"})
    assert summarize(folder).site == Site("resid_post", 4)


def test_version_5_keeps_its_keys_flat(folder: Path) -> None:
    change_config(
        folder, metadata=..., hook_name="blocks.7.hook_resid_post", model_name="gpt2", activation_fn_str="relu"
    )
    summary = summarize(folder)
    assert (summary.site.layer, summary.model_name) == (7, "gpt2")


BAD_CONFIGS = {
    "topk": ({"architecture": "topk"}, "architecture 'topk'"),
    "topk in version 5": ({"architecture": "standard", "activation_fn_str": "topk"}, "architecture 'topk'"),
    "normalised input": ({"normalize_activations": "layer_norm"}, "normalize_activations 'layer_norm'"),
    "expected average": ({"normalize_activations": "expected_average_only_in"}, "only 'none'"),
    "head outputs": ({"reshape_activations": "hook_z"}, "reshape_activations"),
    "another hook": ({"metadata": {"hook_name": "blocks.5.hook_mlp_out"}}, "hook_mlp_out"),
    "the embedding": ({"metadata": {"hook_name": "blocks.0.hook_resid_pre"}}, "embedding"),
    "no hook": ({"metadata": {}}, "hook None"),
    "width as text": ({"d_in": "16"}, "d_in"),
    "width of another model": ({"d_in": 17}, "W_enc has shape (16, 24)"),
    "swapped": ({"d_in": 24, "d_sae": 16}, "has shape"),
}


@pytest.mark.parametrize(("changes", "says"), BAD_CONFIGS.values(), ids=BAD_CONFIGS.keys())
def test_a_configuration_that_we_cannot_follow_is_refused(folder: Path, changes: dict[str, Any], says: str) -> None:
    change_config(folder, **changes)
    with pytest.raises(CheckpointError) as raised:
        read_sae(folder)
    assert says in str(raised.value)


BAD_TENSORS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "a missing tensor": (lambda tensors: tensors.pop("threshold"), "lacks threshold"),
    "an unknown tensor": (
        lambda tensors: tensors.update(scaling_factor=torch.ones(24)),
        "scaling_factor, whose meaning",
    ),
    "a transposed tensor": (lambda tensors: tensors.update(W_enc=tensors["W_enc"].T.contiguous()), "W_enc has shape"),
    "NaN": (lambda tensors: tensors["b_enc"].fill_(float("nan")), "b_enc holds NaN"),
    "infinity": (lambda tensors: tensors["W_dec"][0].fill_(float("inf")), "W_dec holds NaN or infinity"),
    "integers": (lambda tensors: tensors.update(b_dec=torch.ones(16, dtype=torch.int64)), "floating-point"),
}


@pytest.mark.parametrize(("change", "says"), BAD_TENSORS.values(), ids=BAD_TENSORS.keys())
def test_weights_that_we_cannot_trust_are_refused(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], object], says: str
) -> None:
    change_tensors(folder, change)
    with pytest.raises(CheckpointError) as raised:
        read_sae(folder)
    assert says in str(raised.value)


def test_broken_files_are_refused(folder: Path) -> None:
    weights = folder / "sae_weights.safetensors"
    whole = weights.read_bytes()
    for content in (b"", b"\x80\x04pickle", whole[: len(whole) // 2]):
        weights.write_bytes(content)
        with pytest.raises(CheckpointError):
            read_sae(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"has no sae_weights\.safetensors"):
        read_sae(folder)
    (folder / "cfg.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="JSON object"):
        read_sae(folder)
    (folder / "cfg.json").write_text("{")
    with pytest.raises(CheckpointError, match="not readable JSON"):
        read_sae(folder)
