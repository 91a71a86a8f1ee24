"""Llama-Scope-R1-Distill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tests.saes.loaders.layouts import Written
from torch import Tensor

LENGTH = 2.5
"""Mean length of the vectors it was trained on."""


def write(
    folder: Path,
    *,
    d_in: int = 16,
    d_sae: int = 40,
    layer: int = 5,
    seed: int = 0,
    length_stored: bool = True,
    unit_rows: bool = False,
    **changes: Any,
) -> Written:
    """
    The equations are OpenMOSS's for training: vectors are scaled, encoded, gated by length, decoded and scaled back.

    length_stored: whether the weights hold the mean length;  changes: to config.json;  unit_rows: as sae-lens assumes
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    hook = f"blocks.{layer}.hook_resid_post"
    decoder = normal(d_in, d_sae)
    stored = {
        "encoder.weight": normal(d_sae, d_in) / d_in**0.5,
        "encoder.bias": 0.3 * normal(d_sae),
        "decoder.weight": decoder / decoder.norm(dim=0) if unit_rows else decoder,
        "decoder.bias": 0.5 * normal(d_in),
        "log_jumprelu_threshold": normal(d_sae) * 0.5,
    }
    if length_stored:
        stored[f"dataset_average_activation_norm.{hook}"] = torch.tensor(LENGTH)
    path = folder / "800M-Slimpajama-0-OpenR1-Math-220k" / f"L{layer}R"
    path.mkdir(parents=True)
    save_file(stored, path / "sae_weights.safetensors")
    config: dict[str, Any] = {
        "sae_type": "sae",
        "hook_point_in": hook,
        "hook_point_out": hook,
        "d_model": d_in,
        "expansion_factor": 8,
        "act_fn": "jumprelu",
        "norm_activation": "dataset-wise",
        "sparsity_include_decoder_norm": True,
        "top_k": 50,
    }
    config |= changes
    (path / "config.json").write_text(json.dumps(config))
    W = {name: tensor.double() for name, tensor in stored.items()}
    scale = d_in**0.5 / LENGTH if config["norm_activation"] == "dataset-wise" else 1.0
    lengths = W["decoder.weight"].norm(dim=0) if config["sparsity_include_decoder_norm"] else 1.0

    def encode(x: Tensor) -> Tensor:
        pre = scale * x @ W["encoder.weight"].T + W["encoder.bias"]
        return pre * (pre * lengths > W["log_jumprelu_threshold"].exp())

    def decode(acts: Tensor, x: Tensor) -> Tensor:
        return (acts @ W["decoder.weight"].T + W["decoder.bias"]) / scale

    return Written(path, encode, decode)
