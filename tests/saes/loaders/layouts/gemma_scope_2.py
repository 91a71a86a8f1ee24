"""Gemma Scope 2 of Gemma 3: single layers, and files of cross-layer transcoders and crosscoders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from tests.saes.loaders.layouts import Written
from torch import Tensor

HOOKS = {
    "resid_post": ("output", "output", "sae"),
    "attn_out": ("self_attn.o_proj.input", "self_attn.o_proj.input", "sae"),
    "mlp_out": ("post_feedforward_layernorm.output", "post_feedforward_layernorm.output", "sae"),
    "transcoder": ("pre_feedforward_layernorm.output", "post_feedforward_layernorm.output", "transcoder"),
    "clt": ("pre_feedforward_layernorm.output", "post_feedforward_layernorm.output", "clt"),
    "crosscoder": ("output", "output", "crosscoder"),
}


def write(
    folder: Path,
    *,
    d_in: int = 16,
    d_sae: int = 40,
    layer: int = 5,
    seed: int = 0,
    suite: str = "resid_post",
    affine: bool = False,
    config: bool = True,
) -> Written:
    """suite: the folder it is published in."""
    stored = _random(d_in, d_sae, (d_in,), seed, affine)
    path = folder / "gemma-scope-2-1b-pt" / suite
    path /= f"layer_{layer}_width_16k_l0_small{'_affine' if affine else ''}"
    path.mkdir(parents=True)
    save_file(stored, path / "params.safetensors")
    if config:
        _configure(path, suite.removesuffix("_all"), str(layer), d_sae, affine)
    return _written(path, stored, 0)


def write_many(
    folder: Path,
    *,
    d_in: int = 16,
    d_sae: int = 40,
    seed: int = 0,
    suite: str = "clt",
    layers: Sequence[int] = (0, 1, 2, 3),
    affine: bool = False,
) -> list[Written]:
    """Write one file a layer; each is what it computes alone: its features, its bias, its skip connection."""
    named = "_".join(map(str, layers))
    path = folder / suite / (f"layer_{named}_width_65k_l0_big" if suite == "crosscoder" else "width_262k_l0_big")
    path.mkdir(parents=True)
    files = []
    for n in range(len(layers)):
        stored = _random(d_in, d_sae, (len(layers), d_in), seed + n, affine)
        stored["w_dec"][:, :n] = 0
        save_file(stored, path / f"params_layer_{n}.safetensors")
        files.append(_written(path / f"params_layer_{n}.safetensors", stored, n))
    where = "{" + ("all" if suite == "clt" else ",".join(map(str, layers))) + "}"
    _configure(path, suite, where, d_sae * len(layers), affine)
    return files


def _configure(path: Path, suite: str, layers: str, width: int, affine: bool) -> None:
    hook_in, hook_out, kind = HOOKS[suite]
    config = {
        "hf_hook_point_in": f"model.layers.{layers}.{hook_in}",
        "hf_hook_point_out": f"model.layers.{layers}.{hook_out}",
        "width": width,
        "model_name": "google/gemma-3-1b-pt",
        "architecture": "jump_relu",
        "l0": 150,
        "affine_connection": affine,
        "type": kind,
    }
    (path / "config.json").write_text(json.dumps(config))


def _random(d_in: int, d_sae: int, out: tuple[int, ...], seed: int, affine: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    stored = {
        "w_enc": normal(d_in, d_sae) / d_in**0.5,
        "w_dec": normal(d_sae, *out),
        "b_enc": 0.3 * normal(d_sae),
        "b_dec": 0.5 * normal(d_in),
        "threshold": torch.rand(d_sae, generator=generator),
    }
    return stored | ({"affine_skip_connection": normal(d_in, d_in)} if affine else {})


def _written(path: Path, stored: dict[str, Tensor], own: int) -> Written:
    W = {name: tensor.double() for name, tensor in stored.items()}

    def encode(x: Tensor) -> Tensor:
        pre = x @ W["w_enc"] + W["b_enc"]
        return torch.relu(pre) * (pre > W["threshold"])

    def decode(acts: Tensor, x: Tensor) -> Tensor:
        """Outputs of its own and the later layers, side by side."""
        same = W["b_dec"] + (x @ W["affine_skip_connection"] if "affine_skip_connection" in W else 0)
        if W["w_dec"].dim() == 2:
            return acts @ W["w_dec"] + same
        outputs = [acts @ W["w_dec"][:, n] for n in range(own, W["w_dec"].shape[1])]
        outputs[0] = outputs[0] + same
        return torch.cat(outputs, dim=1)

    return Written(path, encode, decode)
