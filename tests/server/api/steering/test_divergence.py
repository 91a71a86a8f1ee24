"""A divergence that is computed of the likeliest tokens is never more than the true one."""

from __future__ import annotations

from math import exp, log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saeclamp_server.api.steering.divergence import kl_lower_bound

LOGITS = st.lists(st.floats(-12, 12), min_size=8, max_size=8)


def distribution(logits: list[float]) -> dict[int, float]:
    total = log(sum(exp(logit) for logit in logits))
    return {token: logit - total for token, logit in enumerate(logits)}


def likeliest(logprobs: dict[int, float], count: int) -> dict[int, float]:
    return dict(sorted(logprobs.items(), key=lambda item: -item[1])[:count])


def exact(own: dict[int, float], other: dict[int, float]) -> float:
    return sum(exp(own[token]) * (own[token] - other[token]) for token in own)


@given(LOGITS, LOGITS, st.integers(0, 8), st.integers(0, 8))
def test_it_is_a_lower_bound(one: list[float], two: list[float], num: int, others: int) -> None:
    own, other = distribution(one), distribution(two)
    bound = kl_lower_bound(likeliest(own, num), likeliest(other, others))
    assert 0 <= bound <= exact(own, other) + 1e-9


@given(LOGITS, LOGITS)
def test_it_is_exact_where_all_tokens_are_known(one: list[float], two: list[float]) -> None:
    own, other = distribution(one), distribution(two)
    assert kl_lower_bound(own, other) == pytest.approx(exact(own, other), abs=1e-6)


def test_equal_distributions_do_not_diverge() -> None:
    own = likeliest(distribution([1.0, 2.0, 3.0, 0.5]), 2)
    assert kl_lower_bound(own, own) == 0
