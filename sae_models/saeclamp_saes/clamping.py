"""
The maths of clamping: the change that moving features makes to a vector, as tensors in and tensors out.

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

from saeclamp_saes.narrow_rows import project_on
from saeclamp_saes.parts import PART_BYTES, parts_of
from saeclamp_saes.sae import SAE, FeatureRows, TopK


class ActivationUpdate(NamedTuple):
    """
    The change of an activation a: `offset + gain a`, cut off so that a ends between `low` and `high`.

    In the encoder's units. The difference is what is computed, not the new activation, so that adding v adds v, to the last
    bit.
    """

    offset: float = 0.0
    gain: float = 0.0
    low: float = -math.inf
    high: float = math.inf


UPDATES: dict[str, Callable[[float], ActivationUpdate]] = {
    "clamp": lambda value: ActivationUpdate(offset=value, gain=-1.0),
    "add": lambda value: ActivationUpdate(offset=value),
    "at_least": lambda value: ActivationUpdate(low=value),
    "at_most": lambda value: ActivationUpdate(high=value),
    "scale": lambda factor: ActivationUpdate(gain=factor - 1.0),
}
"""`ActivationUpdate` of an operation's value, by the operation's name."""


class UniqueFeatures(NamedTuple):
    """The distinct features among pairs: a few of them at many tokens are cheaper as one product than row by row."""

    features: Tensor
    """(num_distinct,) int64"""
    which: Tensor
    """(num_pairs,) int64: index of each pair's feature in `features`"""


class EditRows(NamedTuple):
    """Features to move and tokens to move them at: one entry per (token, intervention) pair, all of one SAE."""

    token: Tensor
    """(num_pairs,) int64, row of the gathered vectors"""
    feature: Tensor
    """(num_pairs,) int64"""
    moves: Tensor
    """(num_pairs, 4): an `ActivationUpdate` a row"""
    distinct: UniqueFeatures | None = None
    """Set where one product is cheaper than a gathered row for each pair; None: rows are gathered."""


class FeaturePairs(NamedTuple):
    """Features to read and tokens to read them at, one entry per pair, all of one SAE."""

    token: Tensor
    """(num_pairs,) int64, row of the gathered vectors"""
    feature: Tensor
    """(num_pairs,) int64"""
    distinct: UniqueFeatures | None = None


class ReadActs(NamedTuple):
    """Activations before the edit, per pair."""

    acts: Tensor
    """(num_pairs,)"""
    scale: Tensor
    """(num_pairs,): the token's own scale, by which a unit of activation moves it in norms of the decoder row"""


def read_acts(x: Tensor, sae: SAE, edits: EditRows | FeaturePairs, part_bytes: int = PART_BYTES) -> ReadActs:
    """
    Activation of each pair's feature at its token, from the unedited vectors.

    x:          (num_tokens, d_in), in the SAE's dtype
    part_bytes: the most that one temporary tensor takes, besides those of x's own size
    """
    normed, scale, _ = sae.input_norm.apply(x)
    rows = sae.rows()
    scales = scale[edits.token, 0]
    if sae.top_k is not None:
        return ReadActs(_among_the_largest(normed, rows, sae.top_k, edits, part_bytes), scales)
    if edits.distinct is not None:
        pre = _projected_on_distinct(normed, rows, edits.token, edits.distinct, part_bytes)
    else:
        pre = torch.cat(
            [
                (normed[edits.token[part]] * rows.encoder[edits.feature[part]]).sum(dim=1)
                for part in parts_of(len(edits.token), 2 * normed.shape[1] * normed.element_size(), part_bytes)
            ]
        )
    pre = pre + rows.bias[edits.feature]
    return ReadActs(torch.where(pre > rows.threshold[edits.feature], pre, 0.0), scales)


def _projected_on_distinct(
    normed: Tensor, rows: FeatureRows, token: Tensor, distinct: UniqueFeatures, part_bytes: int
) -> Tensor:
    """Project each pair's token on its feature's encoder row, by products with all tokens: (num_pairs,)."""
    pre = torch.empty(token.shape, dtype=normed.dtype, device=normed.device)
    for part in parts_of(len(distinct.features), sum(normed.shape) * normed.element_size(), part_bytes):
        products = normed @ rows.encoder[distinct.features[part]].to(normed.dtype).T
        pairs = _pairs_in(part, distinct)
        pre[pairs] = products[token[pairs], distinct.which[pairs] - part.start]
    return pre


def _pairs_in(part: slice, distinct: UniqueFeatures) -> Tensor | slice:
    """Select the pairs whose feature is in a part of the distinct ones; all, without a search, if there is no other part."""
    if part.start == 0 and part.stop >= len(distinct.features):
        return slice(None)
    is_in: Tensor = (distinct.which >= part.start) & (distinct.which < part.stop)
    return is_in.nonzero()[:, 0]


def _among_the_largest(
    normed: Tensor, rows: FeatureRows, top_k: TopK, edits: EditRows | FeaturePairs, part_bytes: int
) -> Tensor:
    # each token once, however many pairs read it: TopK needs the whole encoder, which is the expensive part
    tokens, place = torch.unique(edits.token, return_inverse=True)
    acts = torch.zeros(edits.token.shape, dtype=normed.dtype, device=normed.device)
    for part in parts_of(tokens.numel(), rows.bias.numel() * normed.element_size(), part_bytes):
        pre = project_on(rows.encoder, normed[tokens[part]]) + rows.bias
        size = pre.abs() if top_k.signed else pre
        smallest = size.topk(min(top_k.k, size.shape[1]), dim=1).values[:, -1]
        here = ((place >= part.start) & (place < part.stop)).nonzero()[:, 0]
        token, feature = place[here] - part.start, edits.feature[here]
        # compared with the k-th largest, because only the pairs' own features are needed; features equal to it all count
        kept = torch.where(size[token, feature] >= smallest[token], pre[token, feature], 0.0)
        acts[here] = kept if top_k.signed else kept.clamp_min(0.0)
    return acts


def decoder_delta(
    sae: SAE, edits: EditRows, before: ReadActs, num_tokens: int, write: int = 0, part_bytes: int = PART_BYTES
) -> tuple[Tensor, Tensor]:
    """
    Return the change at one of the sites the SAE writes to, and the norm of each pair's share of it.

    write:      which of `sae.writes`
    part_bytes: as in `read_acts`
    returns:    (num_tokens, width), a token's change being the sum over its pairs; (num_pairs,)
    """
    width = sae.d_out // len(sae.writes)
    decoder = sae.W_dec[:, write * width : (write + 1) * width]
    offset, gain, low, high = edits.moves.unbind(dim=1)
    moved = (offset + gain * before.acts).clamp(low - before.acts, high - before.acts)
    units = moved * before.scale
    delta = torch.zeros(num_tokens, width, dtype=sae.dtype, device=decoder.device)
    lengths = torch.empty(units.shape, dtype=sae.dtype, device=decoder.device)
    if edits.distinct is None:
        for part in parts_of(len(units), 2 * width * delta.element_size(), part_bytes):
            rows = decoder[edits.feature[part]].to(sae.dtype)
            delta.index_add_(0, edits.token[part], units[part, None] * rows)
            lengths[part] = units[part].abs() * rows.norm(dim=1)
        return delta, lengths
    features, which = edits.distinct
    for part in parts_of(len(features), (num_tokens + width) * delta.element_size(), part_bytes):
        rows = decoder[features[part]].to(sae.dtype)
        pairs = _pairs_in(part, edits.distinct)
        column = which[pairs] - part.start
        matrix = torch.zeros(num_tokens, len(rows), dtype=rows.dtype, device=rows.device)
        # added, as an edit may come in several ranges
        matrix.index_put_((edits.token[pairs], column), units[pairs], accumulate=True)
        delta.addmm_(matrix, rows)
        lengths[pairs] = units[pairs].abs() * rows.norm(dim=1)[column]
    return delta, lengths
