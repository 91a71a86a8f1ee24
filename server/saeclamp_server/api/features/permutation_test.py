"""
A permutation test of many features at once: which of them differ between two sets, beyond what chance does.

The sets are dealt anew, many times or in every possible way, and the largest difference of any feature is noted each time: a
feature's p is the share of deals whose largest difference is as large as its own (Westfall and Young's max-T, which corrects
for the number of features however they depend on each other).
"""

from __future__ import annotations

from itertools import combinations
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NUM_PERMUTATIONS = 5000
"""Deals that are tried, and the most ways that are all tried."""
PART = 500
"""Deals that are computed at a time."""
MAX_COLUMNS = 4096
"""Features that are looked at at a time, at most."""
MAX_PRODUCTS = 1 << 31
"""Multiplications that are made at a time."""
LEVEL = 0.05

Floats = NDArray[np.float64]


class MaxTResult(NamedTuple):
    """Results of the test; arrays are (num_features,)."""

    statistic: Floats
    """Difference of the means by the standard deviation over all texts, which no deal changes."""
    p: Floats
    is_exact: bool
    """True if every deal was tried."""
    least_p: float
    """The smallest p that so many texts allow."""


class MaxTTest:
    """Judges features some at a time, in any order: what counts of all deals is their largest difference so far."""

    def __init__(self, num: int, total: int, steady: float, seed: int = 0) -> None:
        """
        num:    texts in the first set
        total:  in both
        steady: spread of the features, as `steadiness` finds it
        """
        self._num, self._total, self._steady = num, total, steady
        self._deals = _permutations(num, total, seed)
        self._largest = np.zeros(sum(map(len, self._deals)))
        self._statistics: list[Floats] = []

    def add(self, values: Floats) -> None:
        """
        Test some more features.

        values: (total, num_features), those of the first set first; at most `num_columns` features
        """
        # features that are active in hardly any text have hardly any spread, and would win by it
        scaled = (values - values.mean(axis=0)) / (values.std(axis=0) + self._steady)
        self._statistics.append(_permutation(np.arange(self._num), self._total) @ scaled)
        largest = np.concatenate([np.abs(part @ scaled).max(axis=1, initial=0) for part in self._deals])
        np.maximum(self._largest, largest, out=self._largest)

    def result(self) -> MaxTResult:
        """Judge all features that were added, in their order."""
        statistic = np.concatenate(self._statistics) if self._statistics else np.zeros(0)
        num_ways = comb(self._total, self._num)
        is_exact = num_ways <= NUM_PERMUTATIONS
        # ties are as large: what the same sum in another order gives must not count as smaller
        largest = np.sort(self._largest)
        count = len(largest) - np.searchsorted(largest, np.abs(statistic) * (1 - 1e-9) - 1e-12)
        # random deals do not have the real one among them, and counting it keeps p from being 0
        p = count / num_ways if is_exact else (1 + count) / (1 + NUM_PERMUTATIONS)
        # dealt the other way round, sets of equal size differ as much
        least = (2 if self._num * 2 == self._total else 1) / num_ways if is_exact else 1 / (1 + NUM_PERMUTATIONS)
        return MaxTResult(statistic, p, is_exact, least)


def num_columns(total: int, most: int = MAX_COLUMNS) -> int:
    """Return how many features are looked at at a time: so many that this takes part of a second, and 64 MB at most."""
    return max(1, min(most, MAX_PRODUCTS // (NUM_PERMUTATIONS * total)))


def steadiness(spread: Floats) -> float:
    """
    Find the spread that is added to each feature's own.

    spread: (num_features,), standard deviations over all texts
    """
    return float(np.median(spread[spread > 0])) if (spread > 0).any() else 1.0


def max_t_test(positive: Floats, negative: Floats, seed: int = 0, *, max_columns: int = MAX_COLUMNS) -> MaxTResult:
    """
    Judge features by what texts count for.

    positive: (num_texts, num_features);  negative: (num_others, num_features)
    """
    values = np.concatenate([positive, negative])
    judgement = MaxTTest(len(positive), len(values), steadiness(values.std(axis=0)), seed)
    step = num_columns(len(values), max_columns)
    for start in range(0, values.shape[1], step):
        judgement.add(values[:, start : start + step])
    return judgement.result()


def cliffs_delta(positive: Floats, negative: Floats) -> Floats:
    """
    Compare every text of one set with every one of the other.

    positive: (num_texts, num_features);  negative: (num_others, num_features)
    returns:  (num_features,)
    """
    wins = [np.sign(row - negative).sum(axis=0) for row in positive]
    delta: Floats = np.sum(wins, axis=0) / (len(positive) * len(negative))
    return delta


def _permutations(num: int, total: int, seed: int) -> list[Floats]:
    """Weights by which the difference of means of each deal is a sum: parts of (num_deals, total)."""
    if comb(total, num) <= NUM_PERMUTATIONS:
        chosen = [np.array(ones) for ones in combinations(range(total), num)]
    else:
        generator = np.random.default_rng(seed)
        chosen = [generator.permutation(total)[:num] for _ in range(NUM_PERMUTATIONS)]
    rows = [_permutation(ones, total) for ones in chosen]
    return [np.stack(rows[start : start + PART]) for start in range(0, len(rows), PART)]


def _permutation(ones: NDArray[np.int64], total: int) -> Floats:
    weights = np.full(total, -1 / (total - len(ones)))
    weights[ones] = 1 / len(ones)
    return weights
