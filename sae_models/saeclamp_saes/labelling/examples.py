"""Pieces of text in which a feature is active, from its strongest activations to its weakest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saeclamp_saes.labelling.firings import Active, Firings
from saeclamp_saes.labelling.table import Example

NUM_QUANTILES = 10
IN_TOP, IN_EACH = 10, 2
"""Examples of the strongest quantile, and of each other one."""
BEFORE, AFTER = 12, 6
"""Tokens shown around the peak, where its sequence has them."""

TokenStrings = Callable[[int], str]


def examples_of(firings: Firings, active: Active, strings: TokenStrings) -> tuple[Example, ...]:
    """
    Choose examples of a feature, from ten quantiles of equal count of its positive activations.

    The strongest quantile gives its strongest examples, and each other one those nearest to its middle. No two are of one
    sequence, unless there are too few sequences; then pieces of one do not overlap.
    """
    strongest_first = np.lexsort((active.token, -active.value))
    sequences = firings.sequence_of(active.token)
    chosen: list[tuple[int, int]] = []
    for quantile in reversed(range(NUM_QUANTILES)):
        ranks = _ranks(len(active.token), quantile)
        if quantile < NUM_QUANTILES - 1:
            ranks = ranks[np.argsort(np.abs(ranks - ranks.mean()), kind="stable")] if len(ranks) else ranks
        most = IN_TOP if quantile == NUM_QUANTILES - 1 else IN_EACH
        picked = _pick(strongest_first[ranks], active.token, sequences, [peak for _, peak in chosen], most)
        chosen += [(quantile, index) for index in sorted(picked, key=lambda index: -active.value[index])]
    return tuple(_example(firings, active, strings, quantile, index) for quantile, index in chosen)


def _ranks(num: int, quantile: int) -> NDArray[Any]:
    """Return the ranks of a quantile, counted from the strongest: rank r from below is in quantile 10 r // num."""
    first, last = (-(-num * edge // NUM_QUANTILES) for edge in (quantile, quantile + 1))
    return np.arange(num - last, num - first)


def _pick(
    candidates: NDArray[Any], token: NDArray[Any], sequences: NDArray[Any], taken: list[int], most: int
) -> list[int]:
    """
    Pick the first candidates, of sequences that gave none yet; if these are too few, others that are apart from all taken.

    candidates: (n,) indices into token and sequences, best first
    taken:      indices that were picked before
    """
    picked: list[int] = []
    left = candidates[~np.isin(sequences[candidates], sequences[taken])]
    while len(left) and len(picked) < most:
        picked.append(int(left[0]))
        left = left[sequences[left] != sequences[left[0]]]
    left = candidates
    for index in (*taken, *picked):
        left = _apart(left, index, token, sequences)
    while len(left) and len(picked) < most:
        picked.append(int(left[0]))
        left = _apart(left, int(left[0]), token, sequences)
    return picked


def _apart(candidates: NDArray[Any], index: int, token: NDArray[Any], sequences: NDArray[Any]) -> NDArray[Any]:
    distance = np.abs(token[candidates].astype(np.int64) - int(token[index]))
    apart: NDArray[Any] = candidates[(distance > BEFORE + AFTER) | (sequences[candidates] != sequences[index])]
    return apart


def _example(firings: Firings, active: Active, strings: TokenStrings, quantile: int, index: int) -> Example:
    peak = int(active.token[index])
    sequence = int(firings.sequence_of(np.array([peak]))[0])
    first = max(int(firings.starts[sequence]), peak - BEFORE)
    end = min(int(firings.starts[sequence + 1]), peak + AFTER + 1)
    acts = np.zeros(end - first, np.float32)
    here = slice(*np.searchsorted(active.token, [first, end]))
    acts[active.token[here] - first] = active.value[here]
    return Example(
        quantile=quantile,
        tokens=tuple(strings(int(token)) for token in firings.ids[first:end]),
        acts=tuple(acts.tolist()),
        peak=peak - first,
        peak_act=float(active.value[index]),
        document=int(firings.documents[sequence]),
    )
