"""Worker process: pairs of a token and a row of a program table, as the torch executor goes through them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from saeclamp_saes.clamping import UniqueFeatures

PRODUCT_PER_PAIR = 16
"""Entries of a (tokens x distinct features) product that cost as much as gathering the two rows of one pair."""
VECTOR_COPIES, PAIR_BYTES = 6, 448
"""Memory that tokens take while they are edited: fp32 vectors of each, and bytes of each pair with a row of a table."""


class TokenPairs(NamedTuple):
    """(token, row of a table) pairs, one element each."""

    token: Tensor
    """int64, row of the batch"""
    program: Tensor
    """int64"""
    ints: Tensor
    """(num_pairs, 8) int64"""
    floats: Tensor
    """(num_pairs, 8) fp32"""

    def only(self, which: Tensor) -> TokenPairs:
        """Select pairs, by a mask."""
        if bool(which.all()):
            return self
        index = which.nonzero()[:, 0]
        return TokenPairs(*(column[index] for column in self))


def distinct_features(feature: Tensor, token: Tensor) -> UniqueFeatures | None:
    """Find the distinct features of an SAE's pairs, where one product is cheaper than gathering rows for each pair."""
    features, which = torch.unique(feature, return_inverse=True)
    num_tokens = len(torch.unique(token))
    if num_tokens * len(features) > PRODUCT_PER_PAIR * len(feature):
        return None
    return UniqueFeatures(features, which)
