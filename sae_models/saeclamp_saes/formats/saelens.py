"""
SAELens: `cfg.json` and `sae_weights.safetensors` (version 6, and version 5's flat keys).

W_enc (d_in, d_sae), W_dec (d_sae, d_in), b_enc, b_dec, and `threshold` for JumpReLU (BatchTopK and Matryoshka SAEs are
saved as JumpReLU too). The encoder subtracts b_dec from its input unless `apply_b_dec_to_input` is false.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from saeclamp_saes.formats.checkpoint import (
    CheckpointError,
    CheckpointSummary,
    check_shapes,
    read_json,
    read_tensors,
    tensor_shapes,
)
from saeclamp_saes.sae import SAE, Site

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
ARCHITECTURES = ("standard", "jumprelu")
HOOK_NAME = re.compile(r"^blocks\.(\d+)\.hook_resid_(pre|post)$")


def summarize(folder: Path) -> CheckpointSummary:
    """Check configuration and shapes. Raises CheckpointError."""
    cfg = read_json(folder / CONFIG)
    architecture = _architecture(cfg, folder)
    _refuse_what_changes_the_maths(cfg, folder)
    d_in, d_sae = _dimension(cfg, "d_in", folder), _dimension(cfg, "d_sae", folder)
    expected = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    if architecture == "jumprelu":
        expected["threshold"] = (d_sae,)
    check_shapes(folder / WEIGHTS, tensor_shapes(folder / WEIGHTS), expected)
    model_name = _metadata(cfg).get("model_name")
    return CheckpointSummary(
        site=_site(cfg, folder),
        d_in=d_in,
        d_sae=d_sae,
        architecture=architecture,
        model_name=model_name if isinstance(model_name, str) else None,
        weights=folder / WEIGHTS,
    )


def read(folder: Path) -> SAE:
    """Read the weights, with the input's b_dec folded into b_enc. Raises CheckpointError."""
    summary = summarize(folder)
    cfg = read_json(folder / CONFIG)
    tensors = read_tensors(folder / WEIGHTS)
    b_enc = tensors["b_enc"]
    if cfg.get("apply_b_dec_to_input", True):
        # (x - b_dec) @ W_enc + b_enc; summed in fp64 so that the fold itself costs no precision
        b_enc = (b_enc.double() - tensors["b_dec"].double() @ tensors["W_enc"].double()).float()
    threshold = tensors.get("threshold", torch.zeros_like(b_enc))
    return SAE(
        site=summary.site,
        W_enc=tensors["W_enc"],
        b_enc=b_enc,
        W_dec=tensors["W_dec"],
        b_dec=tensors["b_dec"],
        threshold=threshold.clamp_min(0.0),  # relu(p) * (p > threshold): a negative threshold is a plain ReLU
    )


def _metadata(cfg: dict[str, Any]) -> dict[str, Any]:
    """Version 6 nests what version 5 kept flat."""
    nested = cfg.get("metadata")
    return nested if isinstance(nested, dict) else cfg


def _architecture(cfg: dict[str, Any], folder: Path) -> str:
    architecture = cfg.get("architecture", "standard")
    if cfg.get("activation_fn_str", "relu") != "relu":
        architecture = cfg["activation_fn_str"]
    if architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{folder}: architecture {architecture!r} is not supported; supported: {', '.join(ARCHITECTURES)}."
        )
    return str(architecture)


def _refuse_what_changes_the_maths(cfg: dict[str, Any], folder: Path) -> None:
    if cfg.get("normalize_activations", "none") not in ("none", False, None):
        raise CheckpointError(
            f"{folder}: normalize_activations {cfg['normalize_activations']!r} is not supported; only 'none' is."
        )
    if cfg.get("reshape_activations", "none") not in ("none", None):
        raise CheckpointError(f"{folder}: reshape_activations {cfg['reshape_activations']!r} is not supported.")


def _dimension(cfg: dict[str, Any], key: str, folder: Path) -> int:
    value = cfg.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"{folder}: {CONFIG} must give {key} as a positive integer, not {value!r}.")
    return value


def _site(cfg: dict[str, Any], folder: Path) -> Site:
    hook_name = _metadata(cfg).get("hook_name")
    match = HOOK_NAME.match(hook_name) if isinstance(hook_name, str) else None
    if match is None:
        raise CheckpointError(
            f"{folder}: hook {hook_name!r} is not supported; supported: blocks.<layer>.hook_resid_post and "
            "blocks.<layer>.hook_resid_pre."
        )
    # what enters block L is what block L-1 leaves
    layer = int(match[1]) - (match[2] == "pre")
    if layer < 0:
        raise CheckpointError(f"{folder}: {hook_name} is the embedding, which no block leaves; it is not supported.")
    return Site("resid_post", layer)
