"""
Cross-layer transcoders as circuit-tracer keeps them (mntss/clt-gemma-2-2b-2.5M). One layer is read, chosen with `?layer=N`.

`W_enc_<i>.safetensors`: W_enc_i (d_sae, d_model), b_enc_i, b_dec_i, and threshold_i (d_sae,) for a JumpReLU.
`W_dec_<i>.safetensors`: W_dec_i (d_sae, L - i, d_model), by the layer that the features READ: [:, j] writes to layer i + j.
`config.yaml` names the hooks by the part after `blocks.<i>.`.
b_dec_i belongs to what is written to layer i, by the features of all layers up to i; it is given to the features of layer i,
so that the outputs of all layers' SAEs add up to the transcoder's.
Source: transcoder/cross_layer_transcoder.py of circuit-tracer.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from saeclamp_saes.errors import CheckpointError
from saeclamp_saes.io.checkpoint import CheckpointSource
from saeclamp_saes.io.tensors import Shape
from saeclamp_saes.loaders.builder import SAEBuilder
from saeclamp_saes.loaders.mwhanna import CONFIG, hook_site, read_threshold, vector_size
from saeclamp_saes.sae import SAE
from saeclamp_saes.sites import Site

NAME = "mntss"


def matches(source: CheckpointSource) -> bool:
    """Recognise a tensor `W_enc_<layer>`."""
    return _layer(source) is not None


def read(source: CheckpointSource) -> SAE:
    """Read the encoder and the decoders of one layer. Raises CheckpointError."""
    layer = _layer(source)
    if layer is None:
        raise CheckpointError(f"{source.weights} lacks W_enc_<layer>: name the file W_enc_<layer>.safetensors.")
    if source.layer() not in (None, layer):
        raise CheckpointError(f"{source.weights} holds layer {layer}, not layer {source.layer()}.")
    encoder, cfg = source.tensors, source.config(CONFIG) or {}
    d_sae, d_model = vector_size(encoder, f"b_enc_{layer}"), vector_size(encoder, f"b_dec_{layer}")
    if f"W_skip_{layer}" in encoder:
        raise CheckpointError(f"{source.weights}: a cross-layer transcoder with a skip connection is not supported.")
    required: dict[str, Shape] = {f"W_enc_{layer}": (d_sae, d_model), f"b_enc_{layer}": (d_sae,)}
    jumps = f"threshold_{layer}" in encoder
    encoder.expect({**required, f"b_dec_{layer}": (d_model,)}, {f"threshold_{layer}": (d_sae,)})
    decoder, num_writes = _decoder(source, layer, d_sae, d_model)
    b_dec = torch.zeros(num_writes * d_model, device=decoder.device)
    b_dec[:d_model] = encoder.tensor(f"b_dec_{layer}", (d_model,))
    draft = SAEBuilder(
        encoder=encoder.tensor(f"W_enc_{layer}", (d_sae, d_model)),
        b_enc=encoder.tensor(f"b_enc_{layer}", (d_sae,)),
        decoder=decoder,
        b_dec=b_dec,
        threshold=read_threshold(encoder, f"threshold_{layer}", d_sae) if jumps else None,
    )
    first = source.site_out(hook_site(cfg, "feature_output_hook", layer))
    return draft.finish(
        source.site(hook_site(cfg, "feature_input_hook", layer)),
        tuple(Site.canonical(first.point, first.layer + above) for above in range(num_writes)),
        kind="clt_layer",
        architecture="jumprelu" if jumps else "relu",
        model_name=cfg.get("model_name"),
    )


def _layer(source: CheckpointSource) -> int | None:
    matches = (re.fullmatch(r"W_enc_(\d{1,4})", name) for name in source.tensors.shapes)
    return next((int(match[1]) for match in matches if match), None)


def _decoder(source: CheckpointSource, layer: int, d_sae: int, d_model: int) -> tuple[Tensor, int]:
    """Return the layer's decoder, its blocks for all layers from it up side by side, and how many layers these are."""
    name = f"W_dec_{layer}"
    tensors = source.open(source.weights.with_name(f"{name}.safetensors"))
    shape = tensors.shapes.get(name, ())
    num_writes = shape[1] if len(shape) == 3 else 0
    tensors.expect({name: (d_sae, num_writes, d_model)})
    return tensors.tensor(name, (d_sae, num_writes, d_model)).view(d_sae, num_writes * d_model), num_writes
