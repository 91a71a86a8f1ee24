"""EleutherAI's sparsify: a folder per module with `cfg.json` and `sae.safetensors`, below the run's `config.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tests.saes.loaders.layouts import Written
from tests.saes.loaders.layouts.linear import random_linear
from torch import Tensor


def write(
    folder: Path,
    *,
    d_in: int = 16,
    d_sae: int = 40,
    layer: int = 5,
    seed: int = 0,
    module: str = "layers.{layer}",
    k: int = 8,
    run: dict[str, Any] | None = None,
    **flags: Any,
) -> Written:
    """
    Write `layers.5/` and the like.

    run:   what the run's configuration says; None leaves it away
    flags: of cfg.json; `...` leaves a key away
    """
    path = folder / module.format(layer=layer)
    path.mkdir(parents=True, exist_ok=True)
    cfg = {"activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": d_sae, "k": k}
    cfg |= {"multi_topk": False, "skip_connection": False, "d_in": d_in, **flags}
    cfg = {key: value for key, value in cfg.items() if value is not ...}
    (path / "cfg.json").write_text(json.dumps(cfg))
    if run is not None:
        (folder / "config.json").write_text(json.dumps(run))
    encoder, b_enc, decoder, b_dec = random_linear(d_in, d_sae, seed)
    stored = {"encoder.weight": encoder, "encoder.bias": b_enc, "W_dec": decoder.T.contiguous(), "b_dec": b_dec}
    if cfg.get("skip_connection"):
        stored["W_skip"] = torch.randn(d_in, d_in, generator=torch.Generator().manual_seed(seed + 1))
    save_file(stored, path / "sae.safetensors")
    raw = {name: tensor.double() for name, tensor in stored.items()}

    def encode(x: Tensor) -> Tensor:
        read = x if cfg.get("transcode") else x - raw["b_dec"]
        pre = torch.nn.functional.linear(read, raw["encoder.weight"], raw["encoder.bias"])
        pre = pre if cfg.get("signed") else torch.relu(pre)
        chosen = (pre.abs() if cfg.get("signed") else pre).topk(k, dim=1).indices
        return torch.zeros_like(pre).scatter(1, chosen, pre.gather(1, chosen))

    def decode(acts: Tensor, x: Tensor) -> Tensor:
        out = torch.einsum("nf,fd->nd", acts, raw["W_dec"]) + raw["b_dec"]
        return out + torch.einsum("oi,ni->no", raw["W_skip"], x) if "W_skip" in raw else out

    return Written(path, encode, decode)
