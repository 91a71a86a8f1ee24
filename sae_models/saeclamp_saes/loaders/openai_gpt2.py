"""
OpenAI's GPT-2 small autoencoders: pickles such as `resid_post_mlp_v5_32k/autoencoders/8.pt`.

pre_bias (d_in,), encoder.weight (d_sae, d_in), latent_bias (d_sae,), decoder.weight (d_in, d_sae), training statistics, and
beside the tensors `activation` (a class's name) and `activation_state_dict` (k, and the function after it). The input is
layer-normalised exactly when the activation is TopK (version 5), then pre_bias is subtracted; decode adds pre_bias and
undoes the normalisation. Source: sparse_autoencoder/model.py and paths.py.
"""

from __future__ import annotations

import re
from typing import Any

from saeclamp_saes.errors import CheckpointError
from saeclamp_saes.io.checkpoint import CheckpointSource
from saeclamp_saes.loaders.builder import SAEBuilder
from saeclamp_saes.loaders.linear import matrix_shape
from saeclamp_saes.sae import SAE, InputNorm, TopK
from saeclamp_saes.sites import Point, Site

NAME = "openai_gpt2"
STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
K = "activation_state_dict.k"

LOCATIONS: dict[str, Point] = {
    "resid_post_attn": "resid_mid",
    "resid_post_mlp": "resid_post",
    "resid_delta_attn": "attn_out",
    "resid_delta_mlp": "mlp_out",
}
"""Points by the folder's name: the residual stream after each half of a block, and what each half adds to it."""

LAYER_NORM = InputNorm(center=True, scale="std", eps=1e-5)


def matches(source: CheckpointSource) -> bool:
    """Recognise the biases, whose names no other family has."""
    return source.has("pre_bias", "latent_bias", "encoder.weight")


def read(source: CheckpointSource) -> SAE:
    """Read the weights and fold what is constant. Raises CheckpointError."""
    tensors = source.tensors
    d_sae, d_in = matrix_shape(tensors, "encoder.weight")
    required = {"pre_bias": (d_in,), "latent_bias": (d_sae,), "encoder.weight": (d_sae, d_in)}
    optional = dict.fromkeys(STATISTICS, (d_sae,))
    tensors.expect({**required, "decoder.weight": (d_in, d_sae)}, {**optional, K: tensors.shapes.get(K, ())})
    top_k = _top_k(source)
    pre_bias = tensors.tensor("pre_bias", (d_in,))
    draft = SAEBuilder(
        encoder=tensors.tensor("encoder.weight", (d_sae, d_in)),
        b_enc=tensors.tensor("latent_bias", (d_sae,)),
        decoder=tensors.transposed("decoder.weight", (d_in, d_sae)),
        b_dec=pre_bias,
    )
    return draft.subtract_from_input(pre_bias).finish(
        # the path is not asked where the user says: it may name a place that is refused
        source.site(None if source.options.text("site") else _site(source)),
        architecture="topk" if top_k else "relu",
        top_k=top_k,
        input_norm=LAYER_NORM if top_k else None,
        model_name="gpt2",
    )


def _top_k(source: CheckpointSource) -> TopK | None:
    """Read the activation: TopK, or None for a ReLU."""
    path = source.weights
    activation = source.extra("activation") or source.options.text("activation", "relu", "topk")
    if activation is None:
        raise CheckpointError(
            f"{path} does not name its activation: add ?activation=topk&k=32 (version 5, whose input is layer-normalised) "
            "or ?activation=relu (versions 1 and 4)."
        )
    if activation.lower() == "relu":
        return None
    state: dict[str, Any] = source.extra("activation_state_dict") or {}
    after = state.get("postact_fn", "ReLU")
    if activation.lower() != "topk" or after != "ReLU":
        raise CheckpointError(f"{path}: activation {activation} with {after} is not supported; supported: ReLU, TopK.")
    k = int(source.tensors.scalar(K)) if K in source.tensors else state.get("k") or source.options.integer("k")
    if not isinstance(k, int) or k < 1:
        raise CheckpointError(f"{path} does not say how many activations it keeps: add ?k=32 (or the like).")
    return TopK(k)


def _site(source: CheckpointSource) -> Site | None:
    path = source.weights.absolute()
    layer = re.fullmatch(r"(\d{1,4})\.\w+", path.name)
    location = re.fullmatch(r"(\w+?)(_v\d+(_\w+)?)?", path.parent.parent.name)
    if location and location[1] == "mlp_post_act":
        raise CheckpointError(
            f"{source.path} reads mlp_post_act, inside the MLP, which is no place that can be steered."
        )
    point = LOCATIONS.get(location[1]) if location else None
    return Site(point, int(layer[1])) if point and layer and path.parent.name == "autoencoders" else None
