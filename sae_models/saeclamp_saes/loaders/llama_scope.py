"""
Llama Scope: `Llama3_1-8B-Base-L15R-8x/hyperparams.json` and `checkpoints/final.safetensors`, of LXR, LXA, LXM and LXTC.

encoder.weight (d_sae, d_model), encoder.bias, decoder.weight (d_model, d_sae), decoder.bias. Vectors that are read and
written have a mean norm each, "in" and "out", and were scaled to sqrt(d_model) in training. The one threshold is that of the
folded SAE: it gates activations measured along unit decoder rows, in the model's own scale. `top_k` is of training only.
Source: lm_saes/sae.py of OpenMOSS's Language-Model-SAEs (initialisation for inference). An activation of sae-lens is this
one times sqrt(d_model) / norm, over the norm of the stored decoder row, which it takes for 1.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from saeclamp_saes.errors import CheckpointError
from saeclamp_saes.io.checkpoint import CheckpointSource, positive_int
from saeclamp_saes.loaders.linear import read_linear
from saeclamp_saes.loaders.openmoss import hook_site
from saeclamp_saes.sae import SAE

NAME = "llama_scope"
CONFIG = ("hyperparams.json", "../hyperparams.json")
"""Places of the configuration, from the weights' folder, which is one below that of the SAE."""

PUBLISHED = {
    "act_fn": "jumprelu",
    "norm_activation": "dataset-wise",
    "sparsity_include_decoder_norm": True,
    "use_decoder_bias": True,
    "use_glu_encoder": False,
    "apply_decoder_bias_to_pre_encoder": False,
}
"""Settings that all published SAEs share, and that `read` relies on."""


def matches(source: CheckpointSource) -> bool:
    """Recognise hyperparameters with one threshold, beside linear layers."""
    return "jump_relu_threshold" in (source.config(*CONFIG) or {}) and source.has("encoder.weight", "decoder.weight")


def read(source: CheckpointSource) -> SAE:
    """Read the weights and fold what is constant. Raises CheckpointError."""
    cfg, path = source.config(*CONFIG) or {}, source.folder / CONFIG[0]
    for key, published in PUBLISHED.items():
        if cfg.get(key, published) != published:
            raise CheckpointError(f"{path}: {key} is {cfg[key]!r}; only {published!r} is supported.")
    threshold = _positive(cfg.get("jump_relu_threshold"), "jump_relu_threshold", path)
    lengths = cfg.get("dataset_average_activation_norm")
    lengths = lengths if isinstance(lengths, dict) else {}
    length_in, length_out = (_positive(lengths.get(side), f"the mean length {side!r}", path) for side in ("in", "out"))
    draft = read_linear(source.tensors, "encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
    d_model = positive_int(cfg, "d_model", path)
    if draft.decoder.shape[1] != d_model:
        raise CheckpointError(f"{path}: d_model is {d_model}; the weights have {draft.decoder.shape[1]}.")
    draft.scale_sides(math.sqrt(d_model) / length_in, math.sqrt(d_model) / length_out)
    draft.scale_activations(draft.decoder_norms())
    # set last, because it is the threshold of the folded SAE
    draft.threshold = torch.full_like(draft.b_enc, threshold)
    hook_in, hook_out = cfg.get("hook_point_in"), cfg.get("hook_point_out")
    reads = hook_site(source, "site", hook_in)
    return draft.finish(
        reads,
        reads if hook_out == hook_in else hook_site(source, "site_out", hook_out),
        kind="sae" if hook_out == hook_in else "transcoder",
        architecture="jumprelu",
        unit="decoder_norm",
        model_name="meta-llama/Llama-3.1-8B",
    )


def _positive(value: Any, what: str, path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise CheckpointError(f"{path}: {what} must be a positive number, not {value!r}.")
    return float(value)
