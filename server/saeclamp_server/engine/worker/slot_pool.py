"""Worker process: consecutive slots of tensors that live on the device: given out, given back, grown by doubling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

INITIAL_SLOTS = 1024


class SlotPool:
    """Hands out runs of slots. Slots of a length that was given back are given out again first."""

    def __init__(self, fills: Sequence[tuple[int, torch.dtype, float]], device: torch.device) -> None:
        """`fills` is, of each tensor, its width, its type and what an unused slot holds."""
        self._fills = [fill for _, _, fill in fills]
        self.tensors = [
            torch.full((INITIAL_SLOTS, width), fill, dtype=dtype, device=device) for width, dtype, fill in fills
        ]
        """(num_slots, width) each"""
        self._next = 0
        self._free: dict[int, list[int]] = {}

    def allocate(self, num: int) -> int:
        """Reserve `num` consecutive slots, as unused ones are, and return the first."""
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
        """Give slots back, for a request with as many."""
        self._free.setdefault(num, []).append(first)

    def read(self, first: int, num: int) -> list[Tensor]:
        """Fetch the rows of `num` consecutive slots, (num, width) each."""
        return [tensor[first : first + num].cpu() for tensor in self.tensors]
