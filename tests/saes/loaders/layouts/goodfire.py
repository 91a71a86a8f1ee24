"""Goodfire: one pickle, named after the model and the layer."""

from __future__ import annotations

from pathlib import Path

from tests.saes.loaders.layouts import Written
from tests.saes.loaders.layouts.linear import write_linear

NAMES = ("encoder_linear.weight", "encoder_linear.bias", "decoder_linear.weight", "decoder_linear.bias")


def write(
    folder: Path,
    *,
    d_in: int = 16,
    d_sae: int = 40,
    layer: int = 5,
    seed: int = 0,
    name: str = "Llama-3.1-8B-Instruct-SAE-l{layer}.pth",
) -> Written:
    """Write a checkpoint; `features = relu(encoder_linear(x))`, `decoder_linear(features)`."""
    return write_linear(folder / name.format(layer=layer), NAMES, d_in, d_sae, seed)
