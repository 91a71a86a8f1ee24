"""OpenMOSS's llamascopium: SAEs, transcoders, cross-layer transcoders and crosscoders in one layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tests.saes.loaders.layouts import Written
from torch import Tensor

TOP_K = 8
LENGTHS = (2.5, 6.0, 4.5, 3.25, 7.0, 5.5)
"""Mean lengths of the vectors at its hooks, in order."""


def write(
    folder: Path,
    *,
    d_in: int = 16,
    d_sae: int = 40,
    layer: int = 5,
    seed: int = 0,
    act_fn: str = "jumprelu",
    hook: str = "hook_resid_post",
    transcoder: bool = False,
    threshold: float | None = None,
    **changes: Any,
) -> Written:
    """
    threshold: that a BatchTopK is used with, of lengths of what is written;  changes: to config.json

    The equations are those of training: vectors are scaled, encoded, gated, decoded and scaled back. Activations are of
    scaled vectors, along the stored rows.
    """
    normal = _normal(seed)
    hook_in = f"blocks.{layer}.{'ln2.hook_normalized' if transcoder else hook}"
    hook_out = f"blocks.{layer}.{'hook_mlp_out' if transcoder else hook}"
    cfg = _config(d_in, act_fn, sae_type="sae", hook_point_in=hook_in, hook_point_out=hook_out, **changes)
    stored = {"W_E": normal(d_in, d_sae) / d_in**0.5, "b_E": 0.3 * normal(d_sae), "W_D": normal(d_sae, d_in)}
    if cfg["use_decoder_bias"]:
        stored["b_D"] = 0.5 * normal(d_in)
    _save(folder, cfg, stored, normal, (d_sae,), [hook_in, hook_out])
    W = {name: tensor.double() for name, tensor in stored.items()}
    s_in, s_out = _scale(cfg, W, hook_in), _scale(cfg, W, hook_out)
    lengths = W["W_D"].norm(dim=1) if cfg["sparsity_include_decoder_norm"] else torch.ones(d_sae).double()
    act = _activation(act_fn, W.get("activation_function.log_jumprelu_threshold"), (threshold or 0) * s_out)

    def encode(x: Tensor) -> Tensor:
        return act((s_in * x @ W["W_E"] + W["b_E"]) * lengths) / lengths

    def decode(acts: Tensor, x: Tensor) -> Tensor:
        return (acts @ W["W_D"] + W.get("b_D", 0)) / s_out

    return Written(folder, encode, decode)


def write_clt(
    folder: Path,
    *,
    d_in: int = 16,
    d_sae: int = 40,
    num_layers: int = 3,
    seed: int = 0,
    act_fn: str = "jumprelu",
    **changes: Any,
) -> list[Written]:
    """Write all layers into one file. Returns what each computes alone: its features, and its own layer's bias."""
    normal = _normal(seed)
    hooks_in = [f"blocks.{n}.ln2.hook_normalized" for n in range(num_layers)]
    hooks_out = [f"blocks.{n}.hook_mlp_out" for n in range(num_layers)]
    cfg = _config(d_in, act_fn, sae_type="clt", hook_points_in=hooks_in, hook_points_out=hooks_out, **changes)
    stored = {"W_E": normal(num_layers, d_in, d_sae) / d_in**0.5, "b_E": 0.3 * normal(num_layers, d_sae)}
    for n in range(num_layers):
        stored[f"W_D.{n}"], stored[f"b_D.{n}"] = normal(n + 1, d_sae, d_in), 0.5 * normal(d_in)
    _save(folder, cfg, stored, normal, (num_layers, d_sae), hooks_in + hooks_out)
    W = {name: tensor.double() for name, tensor in stored.items()}
    return [_clt_layer(folder, cfg, W, own, hooks_in, hooks_out) for own in range(num_layers)]


def _clt_layer(
    folder: Path, cfg: dict[str, Any], W: dict[str, Tensor], own: int, hooks_in: list[str], hooks_out: list[str]
) -> Written:
    targets = range(own, len(hooks_in))
    squares = sum(W[f"W_D.{n}"][own].square().sum(dim=1) for n in targets)
    lengths = torch.as_tensor(squares).sqrt() if cfg["sparsity_include_decoder_norm"] else 1.0
    log_threshold = W.get("activation_function.log_jumprelu_threshold")
    act = _activation(cfg["act_fn"], None if log_threshold is None else log_threshold[own], 0.0)

    def encode(x: Tensor) -> Tensor:
        return act((_scale(cfg, W, hooks_in[own]) * x @ W["W_E"][own] + W["b_E"][own]) * lengths) / lengths

    def decode(acts: Tensor, x: Tensor) -> Tensor:
        outputs = [acts @ W[f"W_D.{n}"][own] + (W[f"b_D.{n}"] if n == own else 0) for n in targets]
        scales = [_scale(cfg, W, hooks_out[n]) for n in targets]
        return torch.cat([output / scale for output, scale in zip(outputs, scales, strict=True)], dim=1)

    return Written(folder, encode, decode)


def write_crosscoder(
    folder: Path,
    *,
    d_in: int = 16,
    d_sae: int = 40,
    layers: tuple[int, ...] = (4, 8, 9),
    seed: int = 0,
    act_fn: str = "relu",
    hook: str = "hook_resid_post",
    head: int | None = None,
    **changes: Any,
) -> Written:
    """head: whose gate and output, where places gate on their own; else one activation and all outputs, side by side."""
    normal, heads = _normal(seed), len(layers)
    hooks = [f"blocks.{n}.{hook}" for n in layers]
    cfg = _config(d_in, act_fn, sae_type="crosscoder", hook_points=hooks, **changes)
    stored = {
        "W_E": normal(heads, d_in, d_sae) / (heads * d_in) ** 0.5,
        "b_E": 0.3 * normal(heads, d_sae),
        "W_D": normal(heads, d_sae, d_in),
        "b_D": 0.5 * normal(heads, d_in),
    }
    _save(folder, cfg, stored, normal, (d_sae,), hooks)
    W = {name: tensor.double() for name, tensor in stored.items()}
    scales = [_scale(cfg, W, hook) for hook in hooks]
    act = _activation(act_fn, W.get("activation_function.log_jumprelu_threshold"), 0.0)

    def encode(x: Tensor) -> Tensor:
        parts = zip(x.split(d_in, dim=1), scales, W["W_E"], W["b_E"], strict=True)
        total = torch.stack([scale * part @ weight + bias for part, scale, weight, bias in parts]).sum(dim=0)
        lengths = W["W_D"][head or 0].norm(dim=1)
        return act(total * lengths) / lengths

    def decode(acts: Tensor, x: Tensor) -> Tensor:
        outputs = [(acts @ W["W_D"][n] + W["b_D"][n]) / scales[n] for n in range(heads)]
        return torch.cat(outputs, dim=1) if head is None else outputs[head]

    return Written(folder, encode, decode)


def _config(d_model: int, act_fn: str, **more: Any) -> dict[str, Any]:
    return {
        "dtype": "torch.float32",
        "d_model": d_model,
        "expansion_factor": 2.5,
        "use_decoder_bias": True,
        "act_fn": act_fn,
        "norm_activation": "dataset-wise",
        "sparsity_include_decoder_norm": True,
        "top_k": TOP_K,
        "use_glu_encoder": False,
    } | more


def _normal(seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


def _save(
    folder: Path,
    cfg: dict[str, Any],
    stored: dict[str, Tensor],
    normal: Callable[..., Tensor],
    shape: tuple[int, ...],
    hooks: list[str],
) -> None:
    """Add thresholds and mean lengths, which mean something in "dataset-wise" only and are else left over memory."""
    if cfg["act_fn"] == "jumprelu":
        stored["activation_function.log_jumprelu_threshold"] = 0.5 * normal(*shape)
    for hook, length in zip(dict.fromkeys(hooks), LENGTHS, strict=False):
        left_over = cfg["norm_activation"] != "dataset-wise"
        stored[f"dataset_average_activation_norm.{hook}"] = torch.tensor(float("nan") if left_over else length)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(stored, folder / "sae_weights.safetensors")
    (folder / "config.json").write_text(json.dumps(cfg))


def _scale(cfg: dict[str, Any], W: dict[str, Tensor], hook: str) -> float:
    if cfg["norm_activation"] != "dataset-wise":
        return 1.0
    return float(cfg["d_model"] ** 0.5 / W[f"dataset_average_activation_norm.{hook}"])


def _activation(act_fn: str, log_threshold: Tensor | None, threshold: float) -> Callable[[Tensor], Tensor]:
    """threshold: that stands for a BatchTopK."""

    def activation(pre: Tensor) -> Tensor:
        if log_threshold is not None:
            return pre * (pre > log_threshold.exp())
        if act_fn == "topk":
            positive = torch.relu(pre)
            return positive * (positive >= positive.topk(TOP_K, dim=-1).values[..., -1:])
        return pre * (pre > threshold)

    return activation
