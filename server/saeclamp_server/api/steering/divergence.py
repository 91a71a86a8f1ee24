"""A bound on how far two next-token distributions are apart, where only their likeliest tokens are known."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp, log

LEAST = 1e-12
"""Probability below which a rest is taken to be nothing but rounding."""


def kl_lower_bound(own: Mapping[int, float], other: Mapping[int, float]) -> float:
    """
    Bound KL(own || other) from below, in nats.

    Tokens that are known of both are compared one by one, and all others as if they were one: lumping tokens together never
    makes a divergence larger.

    own, other: logprobs by token id, of some tokens each
    """
    shared = own.keys() & other.keys()
    pairs = [(exp(own[token]), exp(other[token])) for token in shared]
    rest = tuple(1 - sum(side) for side in zip(*pairs, strict=True)) if pairs else (1.0, 1.0)
    pairs.append((max(rest[0], 0.0), max(rest[1], LEAST)))
    return max(0.0, sum(p * log(p / q) for p, q in pairs if p > LEAST))
