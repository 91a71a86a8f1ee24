"""Qwen-Scope: one pickle a layer in a repository whose name gives k; TopK of x W_enc^T + b_enc."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tests.saes.loaders.layouts import Written, pickles
from tests.saes.loaders.layouts.linear import random_linear
from torch import Tensor

REPOSITORY = "SAE-Res-Qwen3-1.7B-Base-W32K-L0_{k}"


def write(
    folder: Path,
    *,
    d_in: int = 16,
    d_sae: int = 40,
    layer: int = 5,
    seed: int = 0,
    k: int = 8,
    repository: str = REPOSITORY,
    config: bool = False,
) -> Written:
    """repository: name of the folder; config: whether `config.json` was downloaded too."""
    stored = random_linear(d_in, d_sae, seed)
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    path = folder / repository.format(k=k) / f"layer{layer}.sae.pt"
    pickles.save(path, dict(zip(names, stored, strict=True)))
    if config:
        cfg = {"model_type": "topk_sae", "base_model": "Qwen/Qwen3-1.7B-Base", "d_model": d_in, "d_sae": d_sae}
        cfg |= {"k": k, "num_layers": 28, "hook_point": "resid_post", "dtype": "float32"}
        (path.parent / "config.json").write_text(json.dumps(cfg))
    encoder, b_enc, decoder, b_dec = (tensor.double() for tensor in stored)

    def encode(x: Tensor) -> Tensor:
        pre = x @ encoder.T + b_enc
        kept = pre >= pre.sort(dim=1, descending=True).values[:, k - 1 : k]
        return torch.relu(pre) * kept

    def decode(acts: Tensor, x: Tensor) -> Tensor:
        return acts @ decoder.T + b_dec

    return Written(path, encode, decode)
