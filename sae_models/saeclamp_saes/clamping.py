"""
What moving features does, as tensors in and tensors out.

Replacing feature i's activation a_i(x) by v inside `decode(encode(x))` and keeping the reconstruction error changes what the
SAE writes to by `s (v - a_i(x)) W_dec[i]`: the error term, `b_dec` and a skip connection cancel, and s is the token's own
scale where the SAE normalises its input (1 elsewhere). So only the rows of the touched features are needed, except that with
TopK a_i depends on the whole encoder, which is then run for the touched tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from saeclamp_saes.sae import SAE, FeatureRows, TopK

ENCODE_BYTES = 64 << 20
"""Memory for the activations of all features at once; more touched tokens than fit are encoded in parts."""


class Move(NamedTuple):
    """
    How far an activation a is moved: by `offset + gain a`, but no further than to between `low` and `high`.

    In the encoder's units. The difference is what is computed, not the new activation, so that adding v adds v, to the last
    bit.
    """

    offset: float = 0.0
    gain: float = 0.0
    low: float = -math.inf
    high: float = math.inf


MOVES: dict[str, Callable[[float], Move]] = {
    "clamp": lambda value: Move(offset=value, gain=-1.0),
    "add": lambda value: Move(offset=value),
    "at_least": lambda value: Move(low=value),
    "at_most": lambda value: Move(high=value),
    "scale": lambda factor: Move(gain=factor - 1.0),
}
"""By operation"""


class Distinct(NamedTuple):
    """The distinct features among pairs: a few of them at many tokens are cheaper as one product than row by row."""

    features: Tensor
    """(num_distinct,) int64"""
    which: Tensor
    """(num_pairs,) int64, of each pair"""


class Edits(NamedTuple):
    """Which feature moves at which token: one entry per (token, intervention) pair, all of one SAE."""

    token: Tensor
    """(num_pairs,) int64, row of the gathered vectors"""
    feature: Tensor
    """(num_pairs,) int64"""
    moves: Tensor
    """(num_pairs, 4): a `Move` a row"""
    live: Tensor
    """(num_pairs,), 0 or 1; 0 leaves the token alone"""
    distinct: Distinct | None = None
    """Where it is worth a product: then no row is gathered more than once."""


class Pairs(NamedTuple):
    """Which feature is looked at at which token, all of one SAE."""

    token: Tensor
    """(num_pairs,) int64, row of the gathered vectors"""
    feature: Tensor
    """(num_pairs,) int64"""
    distinct: Distinct | None = None


class Acts(NamedTuple):
    """Activations before the edit, per pair."""

    acts: Tensor
    """(num_pairs,)"""
    scale: Tensor
    """(num_pairs,): what a unit of activation is worth at this token, in lengths of the decoder row"""


def read_acts(x: Tensor, sae: SAE, edits: Edits | Pairs) -> Acts:
    """
    Activation of each pair's feature at its token, from the unedited vectors.

    x: (num_tokens, d_in), in the SAE's dtype
    """
    normed, scale, _ = sae.input_norm.apply(x)
    rows = sae.rows()
    scales = scale[edits.token, 0]
    if sae.top_k is not None:
        return Acts(_among_the_largest(normed, rows, sae.top_k, edits), scales)
    if edits.distinct is not None:
        pre = (normed @ rows.encoder[edits.distinct.features].T)[edits.token, edits.distinct.which]
    else:
        pre = (normed[edits.token] * rows.encoder[edits.feature]).sum(dim=1)
    pre = pre + rows.bias[edits.feature]
    return Acts(torch.where(pre > rows.threshold[edits.feature], pre, 0.0), scales)


def _among_the_largest(normed: Tensor, rows: FeatureRows, top_k: TopK, edits: Edits | Pairs) -> Tensor:
    tokens, place = torch.unique(edits.token, return_inverse=True)
    acts = torch.zeros(edits.token.shape, dtype=normed.dtype, device=normed.device)
    step = max(1, ENCODE_BYTES // (rows.bias.numel() * normed.element_size()))
    for first in range(0, tokens.numel(), step):
        pre = normed[tokens[first : first + step]] @ rows.encoder.T + rows.bias
        size = pre.abs() if top_k.signed else pre
        smallest = size.topk(min(top_k.k, size.shape[1]), dim=1).values[:, -1]
        here = ((place >= first) & (place < first + step)).nonzero()[:, 0]
        token, feature = place[here] - first, edits.feature[here]
        kept = torch.where(size[token, feature] >= smallest[token], pre[token, feature], 0.0)
        acts[here] = kept if top_k.signed else kept.clamp_min(0.0)
    return acts


def written(sae: SAE, edits: Edits, before: Acts, num_tokens: int, write: int = 0) -> tuple[Tensor, Tensor]:
    """
    Return the change at one of the sites the SAE writes to, and each pair's length of it.

    write:   which of `sae.writes`
    returns: (num_tokens, width), a token's change being the sum over its pairs; (num_pairs,)
    """
    width = sae.d_out // len(sae.writes)
    decoder = sae.W_dec[:, write * width : (write + 1) * width]
    offset, gain, low, high = edits.moves.unbind(dim=1)
    moved = (offset + gain * before.acts).clamp(low - before.acts, high - before.acts)
    units = moved * edits.live * before.scale
    if edits.distinct is not None:
        features, which = edits.distinct
        rows = decoder[features]
        matrix = torch.zeros(num_tokens, len(features), dtype=rows.dtype, device=rows.device)
        # added, as an edit may come in several ranges
        matrix.index_put_((edits.token, which), units, accumulate=True)
        return matrix @ rows, units.abs() * rows.norm(dim=1)[which]
    rows = decoder[edits.feature]
    delta = torch.zeros(num_tokens, width, dtype=rows.dtype, device=rows.device)
    return delta.index_add_(0, edits.token, units[:, None] * rows), units.abs() * rows.norm(dim=1)
