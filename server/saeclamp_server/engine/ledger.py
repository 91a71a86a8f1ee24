"""What was edited, counted on the device: one slot per edit of each live request, read once when the request ends."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

INITIAL_SLOTS = 1024


@dataclass(frozen=True)
class Tally:
    """What one edit did in one request so far."""

    prompt: int
    """Prompt positions edited in a forward pass (not those whose keys and values came from the prefix cache)."""
    generated: int
    act_sum: float
    dose_sum: float
    act_max: float
    dose_max: float


class Ledger:
    """Slots of running sums and maxima. Grows by doubling; slots are reused."""

    def __init__(self, device: torch.device) -> None:
        # fp64: counts and sums over long generations stay exact
        self._sums = torch.zeros(INITIAL_SLOTS, 4, dtype=torch.float64, device=device)
        self._peaks = torch.zeros(INITIAL_SLOTS, 2, dtype=torch.float32, device=device)
        self._next = 0
        self._free: dict[int, list[int]] = {}

    def allocate(self, num_edits: int) -> int:
        """Reserve `num_edits` consecutive zeroed slots and return the first."""
        if self._free.get(num_edits):
            first = self._free[num_edits].pop()
        else:
            first = self._next
            self._next += num_edits
            while self._next > len(self._sums):
                self._sums = torch.cat((self._sums, torch.zeros_like(self._sums)))
                self._peaks = torch.cat((self._peaks, torch.zeros_like(self._peaks)))
        self._sums[first : first + num_edits] = 0
        self._peaks[first : first + num_edits] = 0
        return first

    def release(self, first: int, num_edits: int) -> None:
        """Return slots for reuse by a request with as many edits."""
        self._free.setdefault(num_edits, []).append(first)

    def add(self, slot: Tensor, sums: Tensor, peaks: Tensor) -> None:
        """
        Add to each pair's slot.

        slot: (num_pairs,) int64;  sums: (num_pairs, 4) as in Tally;  peaks: (num_pairs, 2) activation, dose
        """
        self._sums.index_add_(0, slot, sums.to(self._sums.dtype))
        self._peaks.scatter_reduce_(0, slot[:, None].expand_as(peaks), peaks, "amax")

    def read(self, first: int, num_edits: int) -> list[Tally]:
        """Fetch the tallies of `num_edits` consecutive slots."""
        sums = self._sums[first : first + num_edits].tolist()
        peaks = self._peaks[first : first + num_edits].tolist()
        return [
            Tally(int(prompt), int(generated), act_sum, dose_sum, act_max, dose_max)
            for (prompt, generated, act_sum, dose_sum), (act_max, dose_max) in zip(sums, peaks, strict=True)
        ]
