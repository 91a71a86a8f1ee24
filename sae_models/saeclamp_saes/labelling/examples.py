"""Examples: pieces of text with a feature, from its strongest activations to its weakest, and pieces without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saeclamp_saes.labelling.activation_index import ActivationIndex, FeatureActivations
from saeclamp_saes.labelling.table import Example

NUM_QUANTILES = 10
"""Quantiles of a feature's positive activations, of equal count."""
IN_TOP, IN_EACH = 10, 2
"""Examples of the strongest quantile, and of each other one."""
BEFORE, AFTER = 12, 6
"""Tokens shown around the peak, where its sequence has them."""
NUM_INACTIVE = 14
"""Pieces without the feature, at most: as many as `labels explain` has examples to test on."""
INACTIVE = -1
"""Quantile of pieces without the feature."""
TRIES = 512
"""Places that are tried for them: enough up to a density of about 0.15, if active tokens are strewn by chance."""

TokenStrings = Callable[[int], str]
"""Maps a token's id to its text."""


def top_examples(firings: ActivationIndex, active: FeatureActivations, strings: TokenStrings) -> tuple[Example, ...]:
    """
    Choose examples of a feature, from ten quantiles of equal count of its positive activations, that may be quoted.

    The strongest quantile gives its strongest examples, and each other one those nearest to its middle. No two are of one
    sequence, unless there are too few sequences; then pieces of one do not overlap.
    """
    strongest_first = np.lexsort((active.token, -active.value))
    sequences = firings.sequence_of(active.token)
    quotable = firings.quotable[sequences]
    chosen: list[tuple[int, int]] = []
    for quantile in reversed(range(NUM_QUANTILES)):
        ranks = _ranks(len(active.token), quantile)
        if quantile < NUM_QUANTILES - 1:
            ranks = ranks[np.argsort(np.abs(ranks - ranks.mean()), kind="stable")] if len(ranks) else ranks
        most = IN_TOP if quantile == NUM_QUANTILES - 1 else IN_EACH
        candidates = strongest_first[ranks]
        picked = _pick(candidates[quotable[candidates]], active.token, sequences, [peak for _, peak in chosen], most)
        chosen += [(quantile, index) for index in sorted(picked, key=lambda index: -active.value[index])]
    return tuple(_example(firings, active, strings, quantile, int(active.token[index])) for quantile, index in chosen)


def inactive_examples(
    firings: ActivationIndex, active: FeatureActivations, strings: TokenStrings, index: int
) -> tuple[Example, ...]:
    """
    Draw quotable pieces in which a feature is active on no token, around tokens that count. No two overlap.

    A feature that is active nearly everywhere has fewer, or none.

    index: index of the feature; the draw depends on it and on the quotable places alone
    """
    quotable = firings.quotable_places
    if not len(quotable):
        return ()
    places = quotable[np.random.default_rng(index).integers(len(quotable), size=TRIES)]
    places = places[firings.counts[places]]
    first, end = _extents(firings, places)
    left = (np.searchsorted(active.token, first) == np.searchsorted(active.token, end)).nonzero()[0]
    chosen: list[int] = []
    while len(left) and len(chosen) < NUM_INACTIVE:
        one = left[0]
        chosen.append(int(places[one]))
        left = left[(end[left] <= first[one]) | (first[left] >= end[one])]
    return tuple(_example(firings, active, strings, INACTIVE, place) for place in chosen)


def _ranks(num: int, quantile: int) -> NDArray[Any]:
    """Return the ranks of a quantile, counted from the strongest: rank r from below is in quantile 10 r // num."""
    first, last = (-(-num * edge // NUM_QUANTILES) for edge in (quantile, quantile + 1))
    return np.arange(num - last, num - first)


def _pick(
    candidates: NDArray[Any], token: NDArray[Any], sequences: NDArray[Any], taken: list[int], most: int
) -> list[int]:
    """
    Pick the first candidates, of sequences that gave none yet; if these are too few, others that do not overlap any taken.

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


def _extents(firings: ActivationIndex, peak: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """
    Return the beginnings and ends of the pieces around tokens.

    peak:    (n,) int, places in the stream
    returns: (n,) int64, the first place; (n,) int64, the place behind the last one
    """
    sequence = firings.sequence_of(peak)
    first = np.maximum(firings.starts[sequence], peak - BEFORE)
    return first, np.minimum(firings.starts[sequence + 1], peak + AFTER + 1)


def _example(
    firings: ActivationIndex, active: FeatureActivations, strings: TokenStrings, quantile: int, peak: int
) -> Example:
    around = np.array([peak])
    ((first,), (end,)) = _extents(firings, around)
    acts = np.zeros(end - first, np.float32)
    here = slice(*np.searchsorted(active.token, [first, end]))
    acts[active.token[here] - first] = active.value[here]
    return Example(
        quantile=quantile,
        tokens=tuple(strings(int(token)) for token in firings.ids[first:end]),
        acts=tuple(acts.tolist()),
        peak=peak - int(first),
        peak_act=float(acts[peak - first]),
        document=int(firings.documents[firings.sequence_of(around)[0]]),
    )
