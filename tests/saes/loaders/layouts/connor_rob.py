"""Attention SAEs of gpt2-small: a pickle and its configuration."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tests.saes.loaders.layouts import Written, pickles
from torch import Tensor

NAME = "gpt2-small_L{layer}_Hcat_z_lr1.20e-03_l11.80e+00_ds24576_bs4096_dc1.00e-06_rsanthropic_rie25000_nr4_v9"


def write(folder: Path, *, d_in: int = 16, d_sae: int = 40, layer: int = 5, seed: int = 0) -> Written:
    """`relu((x - b_dec) @ W_enc + b_enc)`, `acts @ W_dec + b_dec`."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    W_enc, b_enc = normal(d_in, d_sae) / d_in**0.5, 0.4 * normal(d_sae)
    W_dec, b_dec = normal(d_sae, d_in), 0.5 * normal(d_in)
    name = NAME.format(layer=layer)
    path = pickles.save(folder / f"{name}.pt", {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec})
    cfg = {"act_size": d_in, "dict_size": d_sae, "act_name": f"blocks.{layer}.attn.hook_z", "model_name": "gpt2-small"}
    (folder / f"{name}_cfg.json").write_text(json.dumps({**cfg, "concat_heads": True, "l1_coeff": 1.8}))

    def encode(x: Tensor) -> Tensor:
        return torch.relu((x - b_dec.double()) @ W_enc.double() + b_enc.double())

    def decode(acts: Tensor, x: Tensor) -> Tensor:
        return acts @ W_dec.double() + b_dec.double()

    return Written(path, encode, decode)
