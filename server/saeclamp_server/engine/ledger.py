"""What was edited, counted on the device: one slot per edit of each live request, read once when the request ends."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saeclamp_server.engine.slots import Slots


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
    """Running sums and maxima."""

    def __init__(self, device: torch.device) -> None:
        # fp64: counts and sums over long generations stay exact
        self._slots = Slots([(4, torch.float64, 0.0), (2, torch.float32, 0.0)], device)

    def allocate(self, num_edits: int) -> int:
        """Reserve `num_edits` consecutive zeroed slots and return the first."""
        return self._slots.allocate(num_edits)

    def release(self, first: int, num_edits: int) -> None:
        """Return slots for reuse by a request with as many edits."""
        self._slots.release(first, num_edits)

    def add(self, slot: Tensor, sums: Tensor, peaks: Tensor) -> None:
        """
        Add to each pair's slot.

        slot: (num_pairs,) int64;  sums: (num_pairs, 4) as in Tally;  peaks: (num_pairs, 2) activation, dose
        """
        all_sums, all_peaks = self._slots.tensors
        all_sums.index_add_(0, slot, sums.to(all_sums.dtype))
        all_peaks.scatter_reduce_(0, slot[:, None].expand_as(peaks), peaks, "amax")

    def read(self, first: int, num_edits: int) -> list[Tally]:
        """Fetch the tallies of `num_edits` consecutive slots."""
        sums, peaks = self._slots.read(first, num_edits)
        return [
            Tally(int(prompt), int(generated), act_sum, dose_sum, act_max, dose_max)
            for (prompt, generated, act_sum, dose_sum), (act_max, dose_max) in zip(
                sums.tolist(), peaks.tolist(), strict=True
            )
        ]
