"""The mask of tokens that count where vectors are measured."""

from __future__ import annotations

from torch import Tensor

SINK_MULTIPLE = 10.0
"""A token whose vector's norm is more than this many times the median is a sink."""


def scored_token_mask(x: Tensor, position: Tensor, is_special: Tensor) -> Tensor:
    """
    Select the tokens that count: not the first of a sequence, no special token, no sink.

    x:          (num_tokens, d)
    position:   (num_tokens,) int64, in the token's own sequence
    is_special: (num_tokens,) bool
    returns:    (num_tokens,) bool
    """
    kept = (position > 0) & ~is_special
    if not kept.any():
        return kept
    norms = x.double().norm(dim=1)
    within: Tensor = norms <= SINK_MULTIPLE * norms[kept].median()
    return kept & within
