"""
Worker process: the edit stats, counted on the device: one slot per edit of each running request, read once when the
request ends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from saeclamp_server.engine.worker.slot_pool import SlotPool


@dataclass(frozen=True)
class EditStat:
    """Statistics of one edit in one request."""

    prompt: int
    """Prompt positions edited in a forward pass (not those whose keys and values came from the prefix cache)."""
    generated: int
    """Generated positions edited."""
    act_sum: float
    dose_sum: float
    act_max: float
    dose_max: float
    """0, like the other fields, where no position was edited in a forward pass."""


class _PendingUpdate(NamedTuple):
    slot: Tensor
    sums: Tensor
    peaks: Tensor
    batch_row: Tensor


class EditStats:
    """Running sums and maxima per edit, on the device."""

    def __init__(self, device: torch.device) -> None:
        # fp64: counts and sums over long generations stay exact. Maxima need no more digits than the fp32 they are taken of
        self._slots = SlotPool([(4, torch.float64, 0.0), (2, torch.float32, -math.inf)], device)
        self.is_deferred = False
        """True if additions wait for `commit_accepted`, as some of the tokens may be drafts."""
        self._pending: list[_PendingUpdate] = []
        """Deferred additions of this step."""

    def allocate(self, num_edits: int) -> int:
        """Reserve `num_edits` consecutive zeroed slots and return the first."""
        return self._slots.allocate(num_edits)

    def release(self, first: int, num_edits: int) -> None:
        """Return slots for reuse by a request with as many edits."""
        self._slots.release(first, num_edits)

    def add(self, slot: Tensor, sums: Tensor, peaks: Tensor, batch_row: Tensor | None = None) -> None:
        """
        Add to each pair's slot, now or in `commit_accepted`.

        slot:      (num_pairs,) int64
        sums:      (num_pairs, 4), the first four fields of `EditStat`
        peaks:     (num_pairs, 2) activation, dose; minus infinity where the pair is not counted
        batch_row: (num_pairs,) int64, row of the step's token batch; needed where additions are deferred
        """
        if not self.is_deferred:
            return self._add(slot, sums, peaks)
        assert batch_row is not None, "what waits must say for which token"
        self._pending.append(_PendingUpdate(slot, sums, peaks, batch_row))

    def commit_accepted(self, is_kept: Tensor) -> None:
        """
        Add the deferred updates of accepted tokens, and drop the others.

        is_kept: (num_tokens,) bool, by row of the batch
        """
        for pending in self._pending:
            kept = is_kept[pending.batch_row][:, None]
            self._add(pending.slot, pending.sums * kept, torch.where(kept, pending.peaks, -math.inf))
        self._pending = []

    def _add(self, slot: Tensor, sums: Tensor, peaks: Tensor) -> None:
        all_sums, all_peaks = self._slots.tensors
        # several pairs of a step may have one slot, which an indexed assignment would count once
        all_sums.index_add_(0, slot, sums.to(all_sums.dtype))
        all_peaks.scatter_reduce_(0, slot[:, None].expand_as(peaks), peaks, "amax")

    def read(self, first: int, num_edits: int) -> list[EditStat]:
        """Fetch the stats of `num_edits` consecutive slots; waits for the device."""
        sums, peaks = self._slots.read(first, num_edits)
        return [
            EditStat(
                int(prompt), int(generated), act_sum, dose_sum, *(peak if peak > -math.inf else 0.0 for peak in both)
            )
            for (prompt, generated, act_sum, dose_sum), both in zip(sums.tolist(), peaks.tolist(), strict=True)
        ]
