"""
Transcoders of single layers as circuit-tracer keeps them: mwhanna's of Qwen3, mntss's of Llama 3.2, and other such sets.

`layer_<n>.safetensors`: W_enc (d_sae, d_in), W_dec (d_sae, d_out), b_enc, b_dec; with `activation_function.threshold` a
JumpReLU; with W_skip (d_out, d_in) a skip transcoder. Nothing is subtracted from the input. `config.yaml` names the hooks,
by the part after `blocks.<n>.`; mwhanna's 14b sets have only the trainer's `wandb-config.yaml`, and were trained like the
others.
Source: transcoder/single_layer_transcoder.py of circuit-tracer, the model cards, loading/pretrained_sae_loaders.py of
sae-lens 6.54.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from saeclamp_saes.errors import CheckpointError
from saeclamp_saes.io.checkpoint import CheckpointSource
from saeclamp_saes.io.tensors import Shape, Tensors
from saeclamp_saes.loaders.builder import SAEBuilder
from saeclamp_saes.sae import SAE
from saeclamp_saes.sites import Site, from_transformer_lens

NAME = "mwhanna"
CONFIG = "config.yaml"
TRAINER_CONFIGS = ("wandb-config.yaml", "wanb-config.yaml")  # one repository misspells it
TRAINED_ON = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}
"""Hooks that mwhanna's Qwen3 sets read and write."""

TENSORS = {"W_enc", "W_dec", "b_enc", "b_dec"}
THRESHOLD = "activation_function.threshold"


def matches(source: CheckpointSource) -> bool:
    """Recognise matrices (d_sae, d_model), beside this family's configuration, or beside none under one of its names."""
    shapes = source.tensors.shapes
    if not TENSORS <= shapes.keys() <= TENSORS | {THRESHOLD, "W_skip"}:
        return False
    if not shapes["W_enc"] == shapes["W_dec"] == shapes["b_enc"] + shapes["b_dec"]:
        return False
    if _config(source) is not None:
        return True
    # square matrices have the same shape in families that store them the other way round
    square = shapes["b_enc"] == shapes["b_dec"]
    own = THRESHOLD in shapes or re.fullmatch(r"layer_\d{1,4}\.\w+", source.weights.name) is not None
    return own and not square and source.config("cfg.json", "config.json") is None


def read(source: CheckpointSource) -> SAE:
    """Read one layer's weights. Raises CheckpointError."""
    tensors, cfg = source.tensors, _config(source) or {}
    d_sae, d_model = vector_size(tensors, "b_enc"), vector_size(tensors, "b_dec")
    required: dict[str, Shape] = {"W_enc": (d_sae, d_model), "W_dec": (d_sae, d_model)}
    required |= {"b_enc": (d_sae,), "b_dec": (d_model,)}
    tensors.expect(required, {THRESHOLD: (d_sae,), "W_skip": (d_model, d_model)})
    jumps, skips = THRESHOLD in tensors, "W_skip" in tensors
    layer = source.layer()
    draft = SAEBuilder(
        encoder=tensors.tensor("W_enc", (d_sae, d_model)),
        b_enc=tensors.tensor("b_enc", (d_sae,)),
        decoder=tensors.tensor("W_dec", (d_sae, d_model)),
        b_dec=tensors.tensor("b_dec", (d_model,)),
        threshold=read_threshold(tensors, THRESHOLD, d_sae) if jumps else None,
    )
    return draft.finish(
        source.site(hook_site(cfg, "feature_input_hook", layer)),
        source.site_out(hook_site(cfg, "feature_output_hook", layer)),
        kind="skip_transcoder" if skips else "transcoder",
        architecture="jumprelu" if jumps else "relu",
        W_skip=tensors.transposed("W_skip", (d_model, d_model)) if skips else None,
        model_name=cfg.get("model_name"),
    )


def vector_size(tensors: Tensors, name: str) -> int:
    """Return the size of a stored vector. Raises CheckpointError if it is no vector."""
    shape = tensors.shapes.get(name, ())
    if len(shape) != 1:
        raise CheckpointError(f"{tensors.path} lacks the vector {name}.")
    return shape[0]


def read_threshold(tensors: Tensors, name: str, d_sae: int) -> Tensor:
    """
    Read the thresholds of circuit-tracer's JumpReLU, x * (x > threshold), which lets no negative activation through as
    long as none of them is negative: (d_sae,). Raises CheckpointError for one that is.
    """
    threshold = tensors.tensor(name, (d_sae,))
    if not threshold.is_meta and threshold.min() < 0:
        raise CheckpointError(
            f"{tensors.path}: {name} has negative values, with which features would be active below zero, and those are "
            "not supported."
        )
    return threshold


def hook_site(cfg: dict[str, Any], key: str, layer: int | None) -> Site | None:
    """Translate one of the two hooks of a `config.yaml`, for a layer; None for a hook that is not known."""
    return None if layer is None else from_transformer_lens(f"blocks.{layer}.{cfg.get(key)}")


def _config(source: CheckpointSource) -> dict[str, Any] | None:
    cfg = source.config(CONFIG)
    if cfg is not None and "feature_input_hook" in cfg:
        return cfg
    return TRAINED_ON if source.config(*TRAINER_CONFIGS) is not None else None
