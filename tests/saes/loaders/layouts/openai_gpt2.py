"""OpenAI's GPT-2 autoencoders: `<location>_v5_32k/autoencoders/L.pt`, a state dict with two entries that are no tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tests.saes.loaders.layouts import Written, pickles
from tests.saes.loaders.layouts.linear import random_linear
from torch import Tensor


def write(
    folder: Path,
    *,
    d_in: int = 16,
    d_sae: int = 40,
    layer: int = 5,
    seed: int = 0,
    location: str = "resid_post_mlp_v5_32k",
    activation: str | None = "TopK",
    state: dict[str, Any] | None = None,
    k: int = 8,
) -> Written:
    """
    Write a checkpoint.

    activation: name of the class; None leaves it away
    state:      the activation's state; k and ReLU for TopK by default
    """
    encoder, latent_bias, decoder, pre_bias = random_linear(d_in, d_sae, seed)
    content: dict[str, Any] = {
        "pre_bias": pre_bias,
        "latent_bias": latent_bias,
        "stats_last_nonzero": torch.arange(d_sae),
        "latents_activation_frequency": torch.ones(d_sae),
        "latents_mean_square": torch.zeros(d_sae),
        "encoder.weight": encoder,
        "decoder.weight": decoder,
    }
    if activation is not None:
        default = {"k": k, "postact_fn": "ReLU"} if activation == "TopK" else {}
        content |= {"activation": activation, "activation_state_dict": default if state is None else state}
    path = pickles.save(folder / "gpt2-small" / location / "autoencoders" / f"{layer}.pt", content)
    rows, bias, columns, offset = (tensor.double() for tensor in (encoder, latent_bias, decoder, pre_bias))

    def layer_norm(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu = x.mean(dim=1, keepdim=True)
        std = ((x - mu).square().sum(dim=1, keepdim=True) / (d_in - 1)).sqrt()
        return (x - mu) / (std + 1e-5), mu, std

    def encode(x: Tensor) -> Tensor:
        if activation != "TopK":
            return torch.relu((x - offset) @ rows.T + bias)
        pre = (layer_norm(x)[0] - offset) @ rows.T + bias
        return torch.relu(pre) * (pre >= pre.sort(dim=1, descending=True).values[:, k - 1 : k])

    def decode(acts: Tensor, x: Tensor) -> Tensor:
        out = acts @ columns.T + offset
        if activation != "TopK":
            return out
        _, mu, std = layer_norm(x)
        return out * std + mu

    return Written(path, encode, decode)
