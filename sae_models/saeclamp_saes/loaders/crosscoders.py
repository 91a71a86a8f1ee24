"""
Crosscoders of neelnanda (all layers of one model) and ckkissane (a base and a chat model at one place): pickles.

W_enc (heads, d_in, d_sae), W_dec (d_sae, heads, d_in), b_enc (d_sae,), b_dec (heads, d_in), a head being a layer or a model.
ReLU of the sum over heads; nothing is subtracted. Every head's input was multiplied by a factor of its own that no file
holds; it is folded in. `<n>_cfg.json` beside `<n>.pt` gives `site`, and head n is layer n; `cfg.json` beside `cc_weights.pt`
gives `hook_point`, the same for both models: base first, chat second.
Both families train on TransformerLens models: neelnanda's as `from_pretrained` makes them, with gpt2's residual stream
centred.
Source: crosscoders/utils.py of neelnanda-io/Crosscoders; crosscoder.py of ckkissane/crosscoder-model-diff-replication, and
the factors of its analysis.
"""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor

from saeclamp_saes.errors import CheckpointError
from saeclamp_saes.io.checkpoint import CheckpointSource
from saeclamp_saes.io.tensors import Tensors
from saeclamp_saes.loaders.builder import SAEBuilder
from saeclamp_saes.loaders.transformer_lens import is_centered
from saeclamp_saes.sae import SAE
from saeclamp_saes.sites import Point, Site, from_transformer_lens

NAME = "crosscoder"
TENSORS = {"W_enc": 3, "W_dec": 3, "b_enc": 1, "b_dec": 2}
"""Numbers of dimensions, by tensor."""

RELEASED = ("gemma-2-2b", "blocks.14.hook_resid_pre", "cc_weights")
"""`model_name`, `hook_point` and file of ckkissane/crosscoder-gemma-2-2b-model-diff."""
RELEASED_SCALES = (0.2758961493232058, 0.24422852496546169)
"""Factors for gemma-2-2b and gemma-2-2b-it: sqrt(d_in) over the mean norm of the vectors it was trained on."""


def matches(source: CheckpointSource) -> bool:
    """Recognise the four tensors, by number of dimensions."""
    return {name: len(shape) for name, shape in source.tensors.shapes.items()} == TENSORS


def read(source: CheckpointSource) -> SAE:
    """Read the weights, stack the heads and fold their factors. Raises CheckpointError."""
    tensors, cfg = source.tensors, source.config(f"{source.weights.stem}_cfg.json", "cfg.json")
    if cfg is None:
        raise CheckpointError(
            f"{source.path} has no {source.weights.stem}_cfg.json or cfg.json beside it, without which nothing says "
            "what its heads read."
        )
    if not matches(source):
        raise CheckpointError(f"{tensors.path} lacks a crosscoder's W_enc, W_dec, b_enc and b_dec.")
    heads, d_in, d_sae = tensors.shapes["W_enc"]
    tensors.expect(
        {"W_enc": (heads, d_in, d_sae), "W_dec": (d_sae, heads, d_in), "b_enc": (d_sae,), "b_dec": (heads, d_in)}
    )
    sites = _sites(source, cfg, heads)
    scales = _input_scales(source, cfg, heads)
    centered = is_centered(source, sites[0], cfg.get("model_name"), default=None if "hook_point" in cfg else True)
    draft = SAEBuilder(
        encoder=_stacked_encoder(tensors, heads, d_in, d_sae),
        b_enc=tensors.tensor("b_enc", (d_sae,)),
        decoder=tensors.tensor("W_dec", (d_sae, heads, d_in)).view(d_sae, heads * d_in),
        b_dec=tensors.tensor("b_dec", (heads, d_in)).view(heads * d_in),
    )
    for head, scale in enumerate(scales):
        own = slice(head * d_in, (head + 1) * d_in)
        draft.encoder[:, own].mul_(scale)
        draft.decoder[:, own].div_(scale)
        draft.b_dec[own].div_(scale)
        if centered:  # w . (x - mean(x)) = (w - mean(w)) . x
            draft.encoder[:, own].sub_(draft.encoder[:, own].mean(dim=1, keepdim=True))
    return draft.finish(sites, kind="crosscoder", model_name=cfg.get("model_name"))


def _stacked_encoder(tensors: Tensors, heads: int, d_in: int, d_sae: int) -> Tensor:
    """Read the encoder's rows, (d_sae, heads * d_in), one head at a time."""
    encoder = torch.empty(d_sae, heads * d_in, device="meta" if tensors.shapes_only else "cpu")
    for head in range(heads):
        encoder[:, head * d_in : (head + 1) * d_in] = tensors.part("W_enc", head).T
    return encoder


def _sites(source: CheckpointSource, cfg: dict[str, Any], heads: int) -> tuple[Site, ...]:
    if "hook_point" in cfg:
        return (source.site(from_transformer_lens(str(cfg["hook_point"]))),) * heads
    points: tuple[Point, ...] = get_args(Point)
    known = next((Site(point, 0) for point in points if point == cfg.get("site")), None)
    first = source.site(known)
    return tuple(Site.canonical(first.point, first.layer + head) for head in range(heads))


def _input_scales(source: CheckpointSource, cfg: dict[str, Any], heads: int) -> tuple[float, ...]:
    scales = source.options.numbers("input_scale")
    if not scales and (cfg.get("model_name"), cfg.get("hook_point"), source.weights.stem) == RELEASED:
        scales = RELEASED_SCALES
    if len(scales) != heads:
        raise CheckpointError(
            f"{source.path} does not hold the factors that its {heads} inputs are multiplied by: give ?input_scale=A,B,... "
            f"with {heads} numbers in the order of the heads (one over each entry of the training code's list of norms)."
        )
    return scales
