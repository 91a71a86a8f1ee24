"""Llama Scope's base release: `hyperparams.json`, and the weights in `checkpoints`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tests.saes.loaders.layouts import Written
from torch import Tensor

HOOKS = {
    "R": ("hook_resid_post", "hook_resid_post"),
    "A": ("hook_attn_out", "hook_attn_out"),
    "M": ("hook_mlp_out", "hook_mlp_out"),
    "TC": ("ln2.hook_normalized", "hook_mlp_out"),
}
THRESHOLD = 0.75390625


def write(
    folder: Path,
    *,
    d_in: int = 16,
    d_sae: int = 40,
    layer: int = 5,
    seed: int = 0,
    part: str = "R",
    length_in: float = 2.5,
    length_out: float = 2.5,
    unit_rows: bool = False,
    **changes: Any,
) -> Written:
    """
    The equations are OpenMOSS's for inference, step by step: mean lengths into the weights, then rows to unit length, then a
    gate at the stored threshold.

    changes: to hyperparams.json;  unit_rows: as sae-lens takes decoders to be
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    decoder = normal(d_in, d_sae)
    stored = {
        "encoder.weight": normal(d_sae, d_in) / d_in**0.5,
        "encoder.bias": 0.3 * normal(d_sae),
        "decoder.weight": decoder / decoder.norm(dim=0) if unit_rows else decoder,
        "decoder.bias": 0.5 * normal(d_in),
    }
    stored = {name: tensor.bfloat16().contiguous() for name, tensor in stored.items()}
    path = folder / f"Llama3_1-8B-Base-L{layer}{part}-8x"
    (path / "checkpoints").mkdir(parents=True)
    save_file(stored, path / "checkpoints" / "final.safetensors")
    hook_in, hook_out = HOOKS[part]
    hyperparams: dict[str, Any] = {
        "device": "cuda:0",
        "dtype": "torch.bfloat16",
        "hook_point_in": f"blocks.{layer}.{hook_in}",
        "hook_point_out": f"blocks.{layer}.{hook_out}",
        "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": False,
        "expansion_factor": 8,
        "d_model": d_in,
        "d_sae": d_sae,
        "act_fn": "jumprelu",
        "jump_relu_threshold": THRESHOLD,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": length_in, "out": length_out},
        "sparsity_include_decoder_norm": True,
        "use_glu_encoder": False,
        "top_k": 50,
    }
    (path / "hyperparams.json").write_text(json.dumps(hyperparams | changes))
    W = {name: tensor.double() for name, tensor in stored.items()}
    s_in, s_out = d_in**0.5 / length_in, d_in**0.5 / length_out
    W_enc, b_enc = W["encoder.weight"].T, W["encoder.bias"] / s_in
    W_dec, b_dec = W["decoder.weight"].T * s_in / s_out, W["decoder.bias"] / s_out
    norm = W_dec.norm(dim=1)

    def encode(x: Tensor) -> Tensor:
        pre = x @ (W_enc * norm) + b_enc * norm
        return pre * (pre > THRESHOLD)

    def decode(acts: Tensor, x: Tensor) -> Tensor:
        return acts @ (W_dec / norm[:, None]) + b_dec

    return Written(path, encode, decode)
