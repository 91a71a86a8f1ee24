"""Logprobs of tokens at successive positions, kept flat: as dicts they would take ten times as much memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping


class Likelihoods:
    """Natural logarithms by token id, of some tokens at each position. Read like a list of dicts."""

    def __init__(self, rows: Iterable[Mapping[int, float] | None] = ()) -> None:
        self._ids, self._logprobs, self._ends = array("i"), array("d"), array("q", [0])
        for row in rows:
            if row is not None:
                self._ids.extend(row.keys())
                self._logprobs.extend(row.values())
            self._ends.append(len(self._ids))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, position: int) -> dict[int, float]:
        """Return what is known at a position: nothing, at a prompt's first one."""
        if not 0 <= position < len(self):
            raise IndexError(position)
        start, end = self._ends[position], self._ends[position + 1]
        return dict(zip(self._ids[start:end], self._logprobs[start:end], strict=True))

    def __iter__(self) -> Iterator[dict[int, float]]:
        return (self[position] for position in range(len(self)))

    def behind(self, start: int) -> Likelihoods:
        """Return those from a position on."""
        return Likelihoods(self[position] for position in range(start, len(self)))
