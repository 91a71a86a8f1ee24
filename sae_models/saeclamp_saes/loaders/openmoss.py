"""
OpenMOSS's llamascopium (Llama Scope 2 of Qwen3, and later): `config.json` and `sae_weights.safetensors`.

SAE, transcoder: W_E (d_model, d_sae), b_E, W_D (d_sae, d_model), b_D, activation_function.log_jumprelu_threshold (d_sae,).
CLT: all of it once a layer, W_E (layers, d_model, d_sae), but W_D.<i> (i + 1, d_sae, d_model) holds what layers 0 .. i write
to layer i. Crosscoder: all of it once a place; the places' encodings are summed, and each place gates the sum anew.

Vectors are first brought to a mean norm of sqrt(d_model) (norm_activation "dataset-wise"), and decoded ones brought back;
the mean norms are scalars beside the weights, and without meaning where norm_activation is "inference". With
`sparsity_include_decoder_norm` a pre-activation is multiplied by the norm of its decoder row, activated, then divided by
it. TopK chooses by that product, so all these activations are read along unit rows; with a CLT's TopK, along rows that have
norm 1 before its outputs are brought back, each by its own factor.
Source: models/sparse_dictionary.py, sae.py, clt.py, crosscoder.py and activation_functions.py of llamascopium. There,
`standardize_parameters_of_dataset_norm` leaves an SAE's thresholds as they are, which changes its gates; it is not followed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saeclamp_saes.errors import CheckpointError
from saeclamp_saes.io.checkpoint import CheckpointSource, positive_int
from saeclamp_saes.io.tensors import Shape
from saeclamp_saes.loaders.builder import SAEBuilder
from saeclamp_saes.sae import SAE, Kind, TopK
from saeclamp_saes.sites import Site, from_transformer_lens

NAME = "openmoss"
CONFIG = "config.json"
LOG_THRESHOLD = "activation_function.log_jumprelu_threshold"
MEAN_LENGTH = "dataset_average_activation_norm."
BATCHED = ("batchtopk", "layertopk", "batchlayertopk")
"""Activation functions that choose among several tokens' or layers' activations; used with a threshold."""


class OpenMossEntry(NamedTuple):
    """One SAE of a file, as stored, and the hooks that it reads and writes."""

    draft: SAEBuilder
    log_threshold: Tensor | None
    """(d_sae,)"""
    hooks_in: Sequence[Any]
    hooks_out: Sequence[Any]
    kind: Kind


def matches(source: CheckpointSource) -> bool:
    """Recognise a configuration with `sae_type`; Llama Scope R1's has it too, beside linear layers."""
    return isinstance((source.config(CONFIG) or {}).get("sae_type"), str) and "encoder.weight" not in source.tensors


def read(source: CheckpointSource) -> SAE:
    """Read the weights and fold what is constant. Raises CheckpointError."""
    cfg, path = source.config(CONFIG) or {}, source.folder / CONFIG
    readers = {"sae": _read_sae, "clt": _read_clt, "crosscoder": _read_crosscoder}
    sae_type = str(cfg.get("sae_type"))
    if sae_type not in readers:
        raise CheckpointError(f"{path}: sae_type {sae_type!r} is not supported; supported: {', '.join(readers)}.")
    if cfg.get("use_glu_encoder"):
        raise CheckpointError(f"{path}: use_glu_encoder is not supported: it multiplies two encodings.")
    top_k = _top_k(source, cfg)
    draft, log_threshold, hooks_in, hooks_out, kind = readers[sae_type](source, cfg, positive_int(cfg, "d_model", path))
    weighted = bool(cfg.get("sparsity_include_decoder_norm", True))
    if weighted:
        draft.scale_activations(draft.decoder_norms())
    # thresholds are those of pre-activations times the stored rows' norms, so they come after this scaling
    draft.threshold = None if log_threshold is None else log_threshold.double().exp()
    factors_out = _scale_sides(source, cfg, draft, hooks_in, hooks_out)
    if weighted:
        # one factor for all features of a TopK: unequal ones would change which it chooses
        draft.scale_activations(draft.decoder_norms() if top_k is None else 1 / factors_out[0])
    if cfg.get("act_fn") in BATCHED:
        draft.threshold = torch.full_like(draft.b_enc, source.options.number("threshold") or 0.0)
    reads = _sites(source, "site", hooks_in)
    return draft.finish(
        reads,
        reads if hooks_out == hooks_in else _sites(source, "site_out", hooks_out),
        kind=kind,
        architecture="jumprelu" if cfg.get("act_fn") in BATCHED else cfg.get("act_fn", "relu"),
        top_k=top_k,
        unit="decoder_norm" if weighted else "native",
    )


def norm_factor(source: CheckpointSource, cfg: dict[str, Any], hook: Any) -> float:
    """Return the factor that vectors at a hook are multiplied by, and decoded ones divided by. Raises CheckpointError."""
    kind, path = cfg.get("norm_activation", "dataset-wise"), source.folder / CONFIG
    if kind in ("inference", "none"):
        return 1.0
    if kind != "dataset-wise":
        raise CheckpointError(f"{path}: norm_activation {kind!r} is not supported; supported: dataset-wise, inference.")
    length = source.tensors.scalar(f"{MEAN_LENGTH}{hook}")
    if length <= 0:
        raise CheckpointError(f"{source.tensors.path}: {MEAN_LENGTH}{hook} is {length}, which is no length.")
    return math.sqrt(positive_int(cfg, "d_model", path)) / length


def mean_norms(source: CheckpointSource, hooks: Sequence[Any]) -> dict[str, Shape]:
    """List the mean norms that a file holds beside its weights: names and shapes."""
    names = [f"{MEAN_LENGTH}{hook}" for hook in hooks]
    return {name: source.tensors.shapes[name] for name in names if name in source.tensors}


def hook_site(source: CheckpointSource, option: str, hook: Any) -> Site:
    """Find the site of a TransformerLens hook; the user's option comes first. Raises CheckpointError."""
    site = source.options.site(option) or (from_transformer_lens(hook) if isinstance(hook, str) else None)
    if site is None:
        raise CheckpointError(
            f"{source.folder}: hook {hook!r} is no known place: add ?{option}=mlp_out.19 (or the like)."
        )
    return site


def _read_sae(source: CheckpointSource, cfg: dict[str, Any], d_model: int) -> OpenMossEntry:
    tensors, d_sae = source.tensors, _d_sae(source, 2)
    hooks_in, hooks_out = [cfg.get("hook_point_in")], [cfg.get("hook_point_out")]
    required: dict[str, Shape] = {"W_E": (d_model, d_sae), "b_E": (d_sae,), "W_D": (d_sae, d_model)}
    if cfg.get("use_decoder_bias", True):
        required["b_D"] = (d_model,)
    tensors.expect({**required, **_thresholds(cfg, (d_sae,))}, mean_norms(source, hooks_in + hooks_out))
    decoder = tensors.tensor("W_D", (d_sae, d_model))
    b_dec = tensors.tensor("b_D", (d_model,)) if "b_D" in required else decoder.new_zeros(d_model)
    draft = SAEBuilder(tensors.transposed("W_E", (d_model, d_sae)), tensors.tensor("b_E", (d_sae,)), decoder, b_dec)
    log_threshold = tensors.tensor(LOG_THRESHOLD, (d_sae,)) if LOG_THRESHOLD in tensors else None
    return OpenMossEntry(draft, log_threshold, hooks_in, hooks_out, "sae" if hooks_in == hooks_out else "transcoder")


def _read_clt(source: CheckpointSource, cfg: dict[str, Any], d_model: int) -> OpenMossEntry:
    tensors, d_sae = source.tensors, _d_sae(source, 3)
    hooks_in, hooks_out = _hooks(source, cfg, "hook_points_in"), _hooks(source, cfg, "hook_points_out")
    num_layers, layer = len(hooks_in), source.options.integer("layer")
    own = next((n for n, hook in enumerate(hooks_in) if hook.startswith(f"blocks.{layer}.")), None)
    if own is None or len(hooks_out) != num_layers:
        raise CheckpointError(f"{source.path} holds {num_layers} layers of a transcoder: choose one with ?layer=N.")
    required: dict[str, Shape] = {"W_E": (num_layers, d_model, d_sae), "b_E": (num_layers, d_sae)}
    for n in range(num_layers):
        required |= {f"W_D.{n}": (n + 1, d_sae, d_model), f"b_D.{n}": (d_model,)}
    tensors.expect({**required, **_thresholds(cfg, (num_layers, d_sae))}, mean_norms(source, hooks_in + hooks_out))
    encoder = tensors.part("W_E", own).T.contiguous()
    decoder = encoder.new_empty(d_sae, (num_layers - own) * d_model)
    for n, part in enumerate(decoder.chunk(num_layers - own, dim=1)):
        part.copy_(tensors.part(f"W_D.{own + n}", own))
    b_dec = decoder.new_zeros(decoder.shape[1])
    b_dec[:d_model] = tensors.tensor(f"b_D.{own}", (d_model,))  # so that the layers' outputs add up to the CLT's
    log_threshold = tensors.part(LOG_THRESHOLD, own) if LOG_THRESHOLD in tensors else None
    draft = SAEBuilder(encoder, tensors.part("b_E", own), decoder, b_dec)
    return OpenMossEntry(draft, log_threshold, hooks_in[own : own + 1], hooks_out[own:], "clt_layer")


def _read_crosscoder(source: CheckpointSource, cfg: dict[str, Any], d_model: int) -> OpenMossEntry:
    tensors, d_sae = source.tensors, _d_sae(source, 3)
    hooks = _hooks(source, cfg, "hook_points")
    required: dict[str, Shape] = {
        "W_E": (len(hooks), d_model, d_sae),
        "b_E": (len(hooks), d_sae),
        "W_D": (len(hooks), d_sae, d_model),
        "b_D": (len(hooks), d_model),
    }
    tensors.expect({**required, **_thresholds(cfg, (d_sae,))}, mean_norms(source, hooks))
    written = _written(source, cfg, _sites(source, "site", hooks))
    encoder = torch.empty(d_sae, len(hooks) * d_model, device="meta" if source.shapes_only else "cpu")
    for n, part in enumerate(encoder.chunk(len(hooks), dim=1)):
        part.copy_(tensors.part("W_E", n).T)
    decoder = encoder.new_empty(d_sae, len(written) * d_model)
    for n, part in zip(written, decoder.chunk(len(written), dim=1), strict=True):
        part.copy_(tensors.part("W_D", n))
    b_enc = tensors.tensor("b_E", (len(hooks), d_sae)).double().sum(dim=0)
    draft = SAEBuilder(encoder, b_enc, decoder, torch.cat([tensors.part("b_D", n) for n in written]))
    log_threshold = tensors.tensor(LOG_THRESHOLD, (d_sae,)) if LOG_THRESHOLD in tensors else None
    return OpenMossEntry(draft, log_threshold, hooks, [hooks[n] for n in written], "crosscoder")


def _written(source: CheckpointSource, cfg: dict[str, Any], sites: Sequence[Site]) -> list[int]:
    """Choose the places that a crosscoder writes to: all with a ReLU, which opens at all of them; else the user's."""
    if cfg.get("act_fn", "relu") == "relu":
        return list(range(len(sites)))
    chosen = source.options.site("site_out")
    if chosen not in sites:
        choices = ", ".join(map(str, sites))
        raise CheckpointError(
            f"{source.path}: a feature is gated at each place on its own: choose ?site_out= of {choices}."
        )
    return [sites.index(chosen)]


def _scale_sides(
    source: CheckpointSource, cfg: dict[str, Any], draft: SAEBuilder, hooks_in: Sequence[Any], hooks_out: Sequence[Any]
) -> list[float]:
    """Fold each place's norm factor. Returns those of `hooks_out`."""
    factors_in, factors_out = ([norm_factor(source, cfg, hook) for hook in hooks] for hooks in (hooks_in, hooks_out))
    for part, factor in zip(draft.encoder.chunk(len(factors_in), dim=1), factors_in, strict=True):
        part.mul_(factor)
    for part, factor in zip(draft.decoder.chunk(len(factors_out), dim=1), factors_out, strict=True):
        part.div_(factor)
    biases = zip(draft.b_dec.chunk(len(factors_out)), factors_out, strict=True)
    draft.b_dec = torch.cat([part / factor for part, factor in biases])
    return factors_out


def _sites(source: CheckpointSource, option: str, hooks: Sequence[Any]) -> tuple[Site, ...]:
    if len(hooks) == 1:
        return (hook_site(source, option, hooks[0]),)
    return source.sites(option, hooks, [from_transformer_lens(hook) for hook in hooks])


def _hooks(source: CheckpointSource, cfg: dict[str, Any], key: str) -> list[str]:
    hooks = cfg.get(key)
    if not isinstance(hooks, list) or not hooks or not all(isinstance(hook, str) for hook in hooks):
        raise CheckpointError(f"{source.folder / CONFIG}: {key} must be a list of hooks, not {hooks!r}.")
    return hooks


def _d_sae(source: CheckpointSource, dimensions: int) -> int:
    shape = source.tensors.shapes.get("W_E", ())
    if len(shape) != dimensions:
        raise CheckpointError(f"{source.tensors.path}: W_E has shape {shape}, expected {dimensions} dimensions.")
    return shape[-1]


def _thresholds(cfg: dict[str, Any], shape: Shape) -> dict[str, Shape]:
    return {LOG_THRESHOLD: shape} if cfg.get("act_fn") == "jumprelu" else {}


def _top_k(source: CheckpointSource, cfg: dict[str, Any]) -> TopK | None:
    act_fn, path = cfg.get("act_fn", "relu"), source.folder / CONFIG
    if act_fn in BATCHED:
        threshold = source.options.number("threshold")
        if threshold is None:
            raise CheckpointError(f"{path}: act_fn {act_fn!r} looks at other tokens or layers: give ?threshold=NUMBER.")
        source.approximation = f"threshold {threshold:g} in place of {act_fn}"
    elif act_fn not in ("relu", "jumprelu", "topk"):
        raise CheckpointError(
            f"{path}: act_fn {act_fn!r} is not supported; supported: relu, jumprelu, topk, batchtopk."
        )
    return TopK(positive_int(cfg, "top_k", path)) if act_fn == "topk" else None
