"""Random nn.Linear pairs, stored (out, in) under the names that Goodfire and qresearch use, with a plain ReLU."""

from __future__ import annotations

from pathlib import Path

import torch
from tests.saes.loaders.layouts import Written, pickles
from torch import Tensor


def random_linear(d_in: int, d_sae: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Encoder (d_sae, d_in) and its bias, decoder (d_in, d_sae) and its bias; nothing is zero or of unit length."""
    generator = torch.Generator().manual_seed(seed)
    encoder = torch.randn(d_sae, d_in, generator=generator) / d_in**0.5
    decoder = torch.randn(d_in, d_sae, generator=generator) * (0.5 + torch.rand(d_sae, generator=generator))
    biases = 0.4 * torch.randn(d_sae, generator=generator), 0.3 * torch.randn(d_in, generator=generator)
    return encoder, biases[0], decoder, biases[1]


def write_linear(path: Path, names: tuple[str, str, str, str], d_in: int, d_sae: int, seed: int) -> Written:
    """names: of the encoder, its bias, the decoder and its bias."""
    stored = random_linear(d_in, d_sae, seed)
    pickles.save(path, dict(zip(names, stored, strict=True)))
    encoder, b_enc, decoder, b_dec = (tensor.double() for tensor in stored)

    def encode(x: Tensor) -> Tensor:
        return torch.relu(x @ encoder.T + b_enc)

    def decode(acts: Tensor, x: Tensor) -> Tensor:
        return acts @ decoder.T + b_dec

    return Written(path, encode, decode)
