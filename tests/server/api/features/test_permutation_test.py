"""What is said of chance is what dealing the texts anew, one deal at a time, shows."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saeclamp_server.api.features.permutation_test import NUM_PERMUTATIONS, cliffs_delta, max_t_test, num_columns


def slow_p(positive: list[list[float]], negative: list[list[float]]) -> list[float]:
    """The same by hand: every deal, every feature, the largest statistic of each deal."""
    texts, num = positive + negative, len(positive)
    columns = list(zip(*texts, strict=True))
    spreads = [float(np.std(column)) for column in columns]
    steady = float(np.median([spread for spread in spreads if spread > 0]) if any(spreads) else 1.0)

    def statistic(feature: int, chosen: tuple[int, ...]) -> float:
        inside = [columns[feature][text] for text in chosen]
        outside = [columns[feature][text] for text in range(len(texts)) if text not in chosen]
        return abs(sum(inside) / len(inside) - sum(outside) / len(outside)) / (spreads[feature] + steady)

    deals = list(combinations(range(len(texts)), num))
    largest = [max(statistic(feature, deal) for feature in range(len(columns))) for deal in deals]
    own = [statistic(feature, tuple(range(num))) for feature in range(len(columns))]
    return [sum(value >= each * (1 - 1e-9) - 1e-12 for value in largest) / len(deals) for each in own]


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(0, 10**6))
def test_p_is_the_share_of_all_deals_that_differ_as_much(num: int, others: int, features: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(num + others, features)) * generator.integers(0, 2, size=(1, features))
    judged = max_t_test(values[:num], values[num:])
    assert judged.is_exact
    assert judged.p == pytest.approx(slow_p(values[:num].tolist(), values[num:].tolist()))


def test_a_planted_feature_is_found_among_many_and_no_other() -> None:
    generator = np.random.default_rng(0)
    values = np.maximum(generator.normal(size=(40, 3000)) - 1, 0)
    values[:20, 1234] += 3
    judged = max_t_test(values[:20], values[20:])
    assert not judged.is_exact
    assert np.flatnonzero(judged.p <= 0.05).tolist() == [1234]
    assert judged.p[1234] == 1 / (1 + NUM_PERMUTATIONS)


def test_of_sets_that_do_not_differ_one_in_twenty_is_said_to() -> None:
    generator = np.random.default_rng(1)
    found = 0
    for _ in range(200):
        values = np.maximum(generator.normal(size=(10, 50)) - 1, 0)
        found += bool((max_t_test(values[:5], values[5:]).p <= 0.05).any())
    # 5 % of 200 is 10; more than 20 has a probability below 0.1 %
    assert found <= 20


@pytest.mark.parametrize(("num", "others", "least"), [(1, 1, 1.0), (2, 2, 2 / 6), (3, 3, 2 / 20), (1, 4, 1 / 5)])
def test_the_smallest_possible_p_is_that_of_perfect_separation(num: int, others: int, least: float) -> None:
    judged = max_t_test(np.ones((num, 1)), np.zeros((others, 1)))
    assert judged.least_p == pytest.approx(least)
    assert judged.p[0] == pytest.approx(least)


def test_a_feature_that_is_active_nowhere_is_never_significant() -> None:
    judged = max_t_test(np.zeros((10, 2)), np.zeros((10, 2)))
    assert judged.p.tolist() == [1, 1]


def test_cliffs_delta_counts_pairs() -> None:
    positive, negative = np.array([[3.0], [1.0], [2.0]]), np.array([[2.0], [0.0]])
    # of six pairs four are won, one is lost, one is even
    assert cliffs_delta(positive, negative).tolist() == [pytest.approx(3 / 6)]


def test_features_are_looked_at_so_many_at_a_time_that_it_is_short() -> None:
    # 5000 deals of 512 texts: 2,560,000 products a feature, of which 2,147,483,648 are made at a time
    assert (num_columns(512), num_columns(16), num_columns(10**9)) == (838, 4096, 1)


def test_features_that_are_looked_at_by_parts_are_judged_as_together() -> None:
    values = np.maximum(np.random.default_rng(2).normal(size=(30, 50)) - 1, 0)
    values[:15, 7] += 2
    whole = max_t_test(values[:15], values[15:], seed=3)
    parts = max_t_test(values[:15], values[15:], seed=3, max_columns=7)
    assert parts.p.tolist() == whole.p.tolist()
    assert parts.statistic == pytest.approx(whole.statistic)
