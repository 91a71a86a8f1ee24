"""
Llama-Scope-R1-Distill: `<data mix>/L15R/config.json` and `sae_weights.safetensors`.

encoder.weight (d_sae, d_model), encoder.bias, decoder.weight (d_model, d_sae), decoder.bias, log_jumprelu_threshold
(d_sae,), and dataset_average_activation_norm.<hook>, the mean norm of the vectors there. They are scaled to a mean norm
of sqrt(d_model), and decoded ones scaled back; activations and thresholds are those of scaled vectors. The gate sees the
pre-activation times the norm of its decoder row, where `sparsity_include_decoder_norm` says so.
Source: lm_saes/sae.py of OpenMOSS's Language-Model-SAEs; loading/pretrained_sae_loaders.py of sae-lens 6.54, which calls the
scaling factor `norm_scaling_factor` and leaves out the decoder's norm, so it agrees for rows of norm 1.
"""

from __future__ import annotations

import math
from typing import Any

from saeclamp_saes.errors import CheckpointError
from saeclamp_saes.io.checkpoint import CheckpointSource, positive_int
from saeclamp_saes.loaders.builder import SAEBuilder
from saeclamp_saes.loaders.linear import matrix_shape
from saeclamp_saes.loaders.openmoss import MEAN_LENGTH, hook_site, mean_norms, norm_factor
from saeclamp_saes.sae import SAE

NAME = "llama_scope_r1"
CONFIG = "config.json"


def matches(source: CheckpointSource) -> bool:
    """Recognise OpenMOSS's configuration beside linear layers and a threshold."""
    cfg = source.config(CONFIG)
    return cfg is not None and "hook_point_in" in cfg and source.has("encoder.weight", "log_jumprelu_threshold")


def read(source: CheckpointSource) -> SAE:
    """Read the weights and fold what is constant. Raises CheckpointError."""
    cfg, tensors, path = source.config(CONFIG) or {}, source.tensors, source.folder / CONFIG
    d_model, d_sae = positive_int(cfg, "d_model", path), matrix_shape(tensors, "encoder.weight")[0]
    hook = cfg.get("hook_point_in")
    if cfg.get("hook_point_out", hook) != hook or cfg.get("act_fn", "jumprelu") != "jumprelu":
        raise CheckpointError(f"{path}: only JumpReLU SAEs that write where they read were published in this layout.")
    required = {
        "encoder.weight": (d_sae, d_model),
        "encoder.bias": (d_sae,),
        "decoder.weight": (d_model, d_sae),
        "decoder.bias": (d_model,),
        "log_jumprelu_threshold": (d_sae,),
    }
    tensors.expect(required, mean_norms(source, (hook,)))
    draft = SAEBuilder(
        encoder=tensors.tensor("encoder.weight", (d_sae, d_model)),
        b_enc=tensors.tensor("encoder.bias", (d_sae,)),
        decoder=tensors.transposed("decoder.weight", (d_model, d_sae)),
        b_dec=tensors.tensor("decoder.bias", (d_model,)),
        threshold=tensors.tensor("log_jumprelu_threshold", (d_sae,)).double().exp(),
    )
    # by the stored rows' norms, so before the scale is folded into them
    if draft.threshold is not None and cfg.get("sparsity_include_decoder_norm", True):
        draft.threshold = draft.threshold / draft.decoder_norms()
    draft.scale_input(_input_scale(source, cfg, hook, d_model))
    return draft.finish(hook_site(source, "site", hook), architecture="jumprelu")


def _input_scale(source: CheckpointSource, cfg: dict[str, Any], hook: Any, d_model: int) -> float:
    """Find the scaling factor: the user's, else that of the mean norm in the weights or in the configuration."""
    if cfg.get("norm_activation", "dataset-wise") != "dataset-wise":
        return norm_factor(source, cfg, hook)
    given = source.options.number("input_scale")
    if given is not None:
        return given
    if f"{MEAN_LENGTH}{hook}" in source.tensors:
        return norm_factor(source, cfg, hook)
    lengths = cfg.get(MEAN_LENGTH.rstrip("."))
    length = lengths.get(hook, lengths.get("in")) if isinstance(lengths, dict) else None
    if not isinstance(length, int | float) or not 0 < length < math.inf:
        raise CheckpointError(
            f"{source.folder}: the mean length of the vectors at {hook} is not in the files: give ?input_scale=FACTOR "
            "(sqrt(d_model) over that length)."
        )
    return math.sqrt(d_model) / length
