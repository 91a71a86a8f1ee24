"""Crosscoders of neelnanda (layers of gpt2) and ckkissane (two gemma-2-2b models)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tests.saes.loaders.layouts import Written, pickles
from torch import Tensor

PUBLISHED = (0.2758961493232058, 0.24422852496546169)
"""Factors of gemma-2-2b and gemma-2-2b-it."""


def write_layers(
    folder: Path,
    *,
    d_in: int = 8,
    d_sae: int = 40,
    heads: int = 3,
    seed: int = 0,
    norms: Sequence[float] = (1.8, 2.1, 4.0),
) -> Written:
    """neelnanda's: each layer's centred stream is divided by its entry of the list of norms in the training code."""
    cfg = {"model_name": "gpt2-small", "site": "resid_post", "dict_size": d_sae, "enc_dtype": "fp32", "seed": 51}
    return _write(
        folder / "3.pt", folder / "3_cfg.json", cfg, d_in, d_sae, heads, seed, [1 / norm for norm in norms], True
    )


def write_models(
    folder: Path,
    *,
    d_in: int = 16,
    d_sae: int = 40,
    layer: int = 14,
    seed: int = 0,
    scales: Sequence[float] = PUBLISHED,
    model_name: str = "gemma-2-2b",
) -> Written:
    """ckkissane's: the stream before one block of the base and of the chat model."""
    hook = f"blocks.{layer}.hook_resid_pre"
    cfg = {"model_name": model_name, "site": "resid_pre", "hook_point": hook, "d_in": d_in, "dict_size": d_sae}
    path = folder / hook
    return _write(path / "cc_weights.pt", path / "cfg.json", cfg, d_in, d_sae, 2, seed, scales, False)


def _write(
    path: Path,
    config: Path,
    cfg: dict[str, Any],
    d_in: int,
    d_sae: int,
    heads: int,
    seed: int,
    scales: Sequence[float],
    centered: bool,
) -> Written:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    W_enc, b_enc = normal(heads, d_in, d_sae) / (heads * d_in) ** 0.5, 0.3 * normal(d_sae)
    W_dec, b_dec = normal(d_sae, heads, d_in), 0.3 * normal(heads, d_in)
    pickles.save(path, {"W_enc": W_enc, "W_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec})
    config.write_text(json.dumps(cfg))

    def encode(x: Tensor) -> Tensor:
        total = b_enc.double().expand(len(x), d_sae)
        for head, own in enumerate(x.split(d_in, dim=1)):
            own = own - own.mean(dim=1, keepdim=True) if centered else own
            total = total + scales[head] * own @ W_enc[head].double()
        return torch.relu(total)

    def decode(acts: Tensor, x: Tensor) -> Tensor:
        each = [(acts @ W_dec[:, head].double() + b_dec[head].double()) / scales[head] for head in range(heads)]
        return torch.cat(each, dim=1)

    return Written(path, encode, decode)
