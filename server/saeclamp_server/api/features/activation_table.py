"""A table of what features count for in many texts, which is kept sparse and never laid out whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saeclamp.types import Aggregate
from saeclamp_server.api.features.text_activations import TextSums
from saeclamp_server.errors import InvalidRequestError

MAX_PAIRS = 1 << 22
"""Pairs of a text and a feature that is active in it; each takes 28 bytes."""


class TextRow(NamedTuple):
    """A text's active features and what they count for in it, by key."""

    keys: NDArray[np.int64]
    """(num_active,), ascending"""
    values: NDArray[np.float64]
    peak: NDArray[np.float64]
    position: NDArray[np.int32]

    @classmethod
    def from_sums(cls, sums: TextSums, aggregate: Aggregate) -> TextRow:
        """Choose what a text counts for."""
        values = {"max": sums.max, "mean": sums.mean, "frequency": sums.frequency}[aggregate]
        return cls(sums.keys, values, sums.peak, sums.position)


class TextTable:
    """Rows are texts, columns are features."""

    def __init__(self, rows: Sequence[TextRow]) -> None:
        self.rows = rows
        self.keys = np.unique(np.concatenate([row.keys for row in rows]))
        """(num_features,): keys of all features that are active somewhere, ascending"""

    def columns(self, keys: NDArray[np.int64]) -> NDArray[np.float64]:
        """
        Lay out what texts count for in some features: (num_texts, num_features).

        keys: ascending
        """
        values = np.zeros((len(self.rows), len(keys)))
        for number, row in enumerate(self.rows if len(keys) else ()):
            start, end = np.searchsorted(row.keys, keys[0]), np.searchsorted(row.keys, keys[-1], side="right")
            near = row.keys[start:end]
            at = np.searchsorted(keys, near)  # never past the end: `near` goes no further than the last key
            is_wanted = keys[at] == near
            values[number, at[is_wanted]] = row.values[start:end][is_wanted]
        return values

    def peak(self, text: int, key: int) -> tuple[float, int] | None:
        """Find where in a text a feature is farthest from 0, and its activation there first; None where it is not active."""
        row = self.rows[text]
        at = int(np.searchsorted(row.keys, key))
        if at == len(row.keys) or row.keys[at] != key:
            return None
        return float(row.peak[at]), int(row.position[at])


class PairCount:
    """Refuses texts in which more is active than can be held."""

    def __init__(self, most: int = MAX_PAIRS) -> None:
        self._num, self._most = 0, most

    def add(self, row: TextRow, path: str) -> None:
        """Count a row. Raises InvalidRequestError, which names `path`."""
        self._num += len(row.keys)
        if self._num > self._most:
            raise InvalidRequestError(
                f"{path}: more features are active in these texts than can be compared ({self._most} pairs of a text and "
                "a feature): give fewer texts, or shorter ones, or name fewer SAEs in 'saes'.",
                path,
            )
