"""
Gemma Scope 2 of Gemma 3: `resid_post/layer_12_width_16k_l0_small/config.json` and `params.safetensors`, alike for attn_out,
mlp_out and transcoder; `clt/width_262k_l0_big` and `crosscoder/layer_5_9_12_15_width_65k_l0_big` with one
`params_layer_<i>.safetensors` for each layer that is read.

w_enc (d_in, d_sae), w_dec (d_sae, d_out), b_enc, b_dec, threshold (d_sae,), affine_skip_connection (d_in, d_out) where
`affine_connection` is set. A JumpReLU, on the vectors as they are. attn_out is what enters o_proj; transcoders read what
the MLP reads, with the norm's gain, and write what it adds to the residual stream, after its second norm.
A CLT's and a crosscoder's files hold an encoder for one layer and w_dec (d_sae, layers, d_out) with a slot for every layer
of the set, whatever the file's own: `width` counts the features of all files, so it is d_sae times layers. Features write
to their own layer and later ones; the slots before are padding. b_dec and the skip connection are of the file's own layer.
Source: the release's tutorial and technical report (2.6); loading/pretrained_sae_loaders.py of sae-lens 6.54, which adds up
all slots of w_dec; load_gemma_scope_2_clt of circuit-tracer.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from saeclamp_saes.errors import CheckpointError
from saeclamp_saes.io.checkpoint import CheckpointSource, positive_int
from saeclamp_saes.io.tensors import Shape
from saeclamp_saes.loaders.builder import SAEBuilder
from saeclamp_saes.loaders.linear import matrix_shape
from saeclamp_saes.sae import SAE, Kind
from saeclamp_saes.sites import Site, from_hugging_face

NAME = "gemma_scope_2"
CONFIG = "config.json"
SKIP = "affine_skip_connection"
HOOKS = {
    "resid_post": ("output",),
    "attn_out": ("self_attn.o_proj.input",),
    "mlp_out": ("post_feedforward_layernorm.output",),
    "transcoder": ("pre_feedforward_layernorm.output", "post_feedforward_layernorm.output"),
}
"""Hooks by the folder's name, for repositories without configurations."""


def matches(source: CheckpointSource) -> bool:
    """Recognise the lower-case names, which no other family has."""
    return source.has("w_enc", "w_dec", "b_enc", "b_dec", "threshold")


def read(source: CheckpointSource) -> SAE:
    """Read the weights. Raises CheckpointError."""
    cfg, path = source.config(CONFIG) or _config_of(source), source.folder / CONFIG
    if cfg.get("architecture", "jump_relu") != "jump_relu":
        raise CheckpointError(f"{path}: architecture {cfg['architecture']!r} is not supported; supported: jump_relu.")
    if len(source.tensors.shapes.get("w_dec", ())) == 3:
        return _read_one_of_many(source, cfg)
    tensors, (d_in, d_sae), d_out = source.tensors, matrix_shape(source.tensors, "w_enc"), _d_out(source)
    has_skip = _check(source, cfg, (d_in, d_sae), (d_sae, d_out), d_out)
    hook_in, hook_out = cfg.get("hf_hook_point_in"), cfg.get("hf_hook_point_out")
    is_transcoder = has_skip or hook_out not in (None, hook_in)
    reads = source.site(_site(hook_in))
    writes = source.site_out(_site(hook_out)) if is_transcoder else reads
    return _finish(
        source,
        cfg,
        tensors.tensor("w_dec", (d_sae, d_out)),
        tensors.tensor("b_dec", (d_out,)),
        tensors.tensor(SKIP, (d_in, d_out)) if has_skip else None,
        (reads,),
        (writes,),
        "skip_transcoder" if has_skip else "transcoder" if is_transcoder else "sae",
    )


def _read_one_of_many(source: CheckpointSource, cfg: dict[str, Any]) -> SAE:
    """Read one file of a CLT or crosscoder: features of one layer, which write to it and to all later ones."""
    tensors, (d_in, d_sae) = source.tensors, matrix_shape(source.tensors, "w_enc")
    _, slots, d_out = tensors.shapes["w_dec"]
    has_skip = _check(source, cfg, (d_in, d_sae), (d_sae, slots, d_out), d_out)
    reads, writes = (_layers(source, cfg, key, slots) for key in ("hf_hook_point_in", "hf_hook_point_out"))
    width = positive_int(cfg, "width", source.folder / CONFIG)
    if width != d_sae * slots:
        raise CheckpointError(
            f"{source.tensors.path}: w_dec has {slots} slots, but a width of {width} and {d_sae} features a file mean "
            f"{width / d_sae:g} layers, so it cannot be told which layers the slots are."
        )
    own = _file_number(source, slots)
    decoder = tensors.tail("w_dec", own)
    b_dec = decoder.new_zeros(decoder.shape[1])
    b_dec[:d_out] = tensors.tensor("b_dec", (d_out,))
    W_skip = decoder.new_zeros(d_in, decoder.shape[1]) if has_skip else None
    if W_skip is not None:
        W_skip[:, :d_out] = tensors.tensor(SKIP, (d_in, d_out))
    kind: Kind = "crosscoder" if reads == writes else "clt_layer"
    return _finish(source, cfg, decoder, b_dec, W_skip, reads[own : own + 1], writes[own:], kind)


def _finish(
    source: CheckpointSource,
    cfg: dict[str, Any],
    decoder: Tensor,
    b_dec: Tensor,
    W_skip: Tensor | None,
    reads: tuple[Site, ...],
    writes: tuple[Site, ...],
    kind: Kind,
) -> SAE:
    tensors, (d_in, d_sae) = source.tensors, matrix_shape(source.tensors, "w_enc")
    encoder, b_enc = tensors.transposed("w_enc", (d_in, d_sae)), tensors.tensor("b_enc", (d_sae,))
    draft = SAEBuilder(encoder, b_enc, decoder, b_dec, threshold=tensors.tensor("threshold", (d_sae,)))
    model_name = cfg.get("model_name")
    return draft.finish(reads, writes, kind=kind, architecture="jumprelu", W_skip=W_skip, model_name=model_name)


def _check(source: CheckpointSource, cfg: dict[str, Any], encoder: Shape, decoder: Shape, d_out: int) -> bool:
    """Check names and shapes. Returns True if there is a skip connection."""
    d_in, d_sae = encoder
    required: dict[str, Shape] = {"w_enc": encoder, "w_dec": decoder, "b_dec": (d_out,)}
    required |= {"b_enc": (d_sae,), "threshold": (d_sae,)}
    skip: dict[str, Shape] = {SKIP: (d_in, d_out)}
    source.tensors.expect({**required, **(skip if cfg.get("affine_connection") else {})}, skip)
    return SKIP in source.tensors


def _d_out(source: CheckpointSource) -> int:
    return matrix_shape(source.tensors, "w_dec")[1]


def _site(hook: Any) -> Site | None:
    return from_hugging_face(hook) if isinstance(hook, str) else None


def _config_of(source: CheckpointSource) -> dict[str, Any]:
    """Derive a missing configuration's hooks from the folders' names."""
    match = re.search(rf"({'|'.join(HOOKS)})(?:_all)?/layer_(\d+)_[^/]+$", source.weights.absolute().parent.as_posix())
    hooks = HOOKS[match[1]] if match else ()
    keys = ("hf_hook_point_in", "hf_hook_point_out")
    return {key: f"model.layers.{match[2]}.{hook}" for key, hook in zip(keys, hooks, strict=False)} if match else {}


def _layers(source: CheckpointSource, cfg: dict[str, Any], key: str, slots: int) -> tuple[Site, ...]:
    """Translate `model.layers.{5,9,12,15}.output`, or `{all}` for layers 0 .. slots - 1."""
    hook = cfg.get(key)
    match = re.fullmatch(r"model\.layers\.\{(all|\d+(?:,\d+)*)\}\.([a-z_.]+)", hook if isinstance(hook, str) else "")
    numbers = (str(n) for n in range(slots)) if match and match[1] == "all" else match[1].split(",") if match else ()
    hooks = [f"model.layers.{n}.{match[2]}" for n in numbers] if match else []
    if len(hooks) != slots:
        raise CheckpointError(
            f"{source.folder / CONFIG}: {key} {hook!r} does not name the {slots} layers that w_dec has slots for."
        )
    return source.sites("site" if key.endswith("in") else "site_out", hooks, [from_hugging_face(one) for one in hooks])


def _file_number(source: CheckpointSource, slots: int) -> int:
    number = source.layer()
    if number is None or number >= slots:
        raise CheckpointError(
            f"{source.weights} is none of params_layer_0.safetensors to params_layer_{slots - 1}.safetensors: add ?layer=N, "
            "the number in its published name."
        )
    return number
