"""Qresearch's DeepSeek-R1 SAE: one pickle, named after the model and the layer."""

from __future__ import annotations

from pathlib import Path

from tests.saes.loaders.layouts import Written
from tests.saes.loaders.layouts.linear import write_linear

NAMES = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")


def write(
    folder: Path,
    *,
    d_in: int = 16,
    d_sae: int = 40,
    layer: int = 5,
    seed: int = 0,
    name: str = "DeepSeek-R1-Distill-Llama-8B-SAE-l{layer}.pt",
) -> Written:
    """Write a checkpoint; `relu(encoder(x))`, `decoder(features)`."""
    return write_linear(folder / name.format(layer=layer), NAMES, d_in, d_sae, seed)
