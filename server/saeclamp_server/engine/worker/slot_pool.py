"""Worker process: allocator of consecutive slots, which are rows of tensors on the device that grow by doubling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

INITIAL_SLOTS = 1024


class SlotPool:
    """
    Allocates runs of consecutive slots.

    Runs are reused by requests of the same number of slots, never split or merged: requests have few edits and rules, so few
    different numbers occur.
    """

    def __init__(self, fills: Sequence[tuple[int, torch.dtype, float]], device: torch.device) -> None:
        """`fills` has, per tensor, its width, its type and the value of an unused slot."""
        self._fills = [fill for _, _, fill in fills]
        self.tensors = [
            torch.full((INITIAL_SLOTS, width), fill, dtype=dtype, device=device) for width, dtype, fill in fills
        ]
        """(num_slots, width) each"""
        self._next = 0
        self._free: dict[int, list[int]] = {}

    def allocate(self, num: int) -> int:
        """Reserve `num` consecutive slots, filled like unused ones, and return the first."""
        if self._free.get(num):
            first = self._free[num].pop()
        else:
            first = self._next
            self._next += num
            while self._next > len(self.tensors[0]):
                self.tensors = [
                    torch.cat((tensor, torch.full_like(tensor, fill)))
                    for tensor, fill in zip(self.tensors, self._fills, strict=True)
                ]
        for tensor, fill in zip(self.tensors, self._fills, strict=True):
            tensor[first : first + num] = fill
        return first

    def release(self, first: int, num: int) -> None:
        """Return slots for reuse by a request with as many."""
        self._free.setdefault(num, []).append(first)

    def read(self, first: int, num: int) -> list[Tensor]:
        """Fetch the rows of `num` consecutive slots, (num, width) per tensor; waits for the device."""
        return [tensor[first : first + num].cpu() for tensor in self.tensors]
