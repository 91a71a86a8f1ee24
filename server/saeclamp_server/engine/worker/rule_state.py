"""Worker process: where rules held, noted on the device: one slot per rule of each live request. Free of vLLM."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saeclamp.types import MAX_TESTS
from saeclamp_server.engine.worker.slot_pool import Slots
from saeclamp_server.steering.token_ranges import FOREVER


class Firings:
    """Of each rule: the first position at which it held, the activations there, and at how many it held."""

    def __init__(self, device: torch.device) -> None:
        self._slots = Slots(
            [(1, torch.int64, FOREVER), (MAX_TESTS, torch.float32, 0.0), (1, torch.int64, 0)],
            device,
        )
        self._nowhere = self._slots.allocate(1)
        self.holds = False
        """Whether counts wait for `settle`: some of the tokens may be drafts."""
        self._held: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self.device = device

    def allocate(self, num_rules: int) -> int:
        """Reserve consecutive slots of rules that have not held, and return the first."""
        return self._slots.allocate(num_rules)

    def release(self, first: int, num_rules: int) -> None:
        """Return slots for reuse by a request with as many rules."""
        self._slots.release(first, num_rules)

    def note(
        self,
        slot: Tensor,
        position: Tensor,
        start: Tensor,
        holds: Tensor,
        acts: Tensor,
        counted: Tensor,
        batch_row: Tensor,
    ) -> Tensor:
        """
        Note at which rows rules hold, and return the first position at which each row's rule did, so far.

        What was noted at or behind a row's `start` is of tokens that are computed again, or that were drafts and are now
        others: it is forgotten.

        slot, position, start, batch_row: (num_rows,) int64;  holds, counted: (num_rows,) bool
        acts: (num_rows, num_comparisons)
        returns: (num_rows,) int64, `FOREVER` where it has not held
        """
        first, first_acts, num = self._slots.tensors
        first[slot, 0] = torch.where(first[slot, 0] >= start, FOREVER, first[slot, 0])
        first[:, 0].scatter_reduce_(0, slot, torch.where(holds, position, FOREVER), "amin")
        is_first = holds & (position == first[slot, 0])
        # rows that are not the first write to a slot that nobody reads: a selection would need a round trip to the host
        first_acts[torch.where(is_first, slot, self._nowhere), : acts.shape[1]] = acts
        if self.holds:
            self._held.append((slot, position, holds & counted, batch_row))
        else:
            num[:, 0].index_add_(0, slot, (holds & counted).to(num.dtype))
        return first[slot, 0]

    def settle(self, is_kept: Tensor) -> None:
        """Count what was held of the tokens that stay, (num_tokens,) bool by row of the batch; forget where drafts held."""
        first, _, num = self._slots.tensors
        for slot, position, counts, batch_row in self._held:
            kept = is_kept[batch_row]
            num[:, 0].index_add_(0, slot, (counts & kept).to(num.dtype))
            is_draft = ~kept & (position == first[slot, 0])
            # one row of a rule at most is at its first position
            first[torch.where(is_draft, slot, self._nowhere), 0] = FOREVER
        self._held = []

    def first(self, slots: Tensor) -> Tensor:
        """
        First positions at which rules held.

        slots:   (num_rules,) int64
        returns: (num_rules,) int64, a copy; `FOREVER` where a rule has not held
        """
        return self._slots.tensors[0][slots, 0]

    def read(self, first: int, num_comparisons: list[int]) -> list[dict[str, Any] | None]:
        """Say of consecutive rules, with as many comparisons, where and how each held; None where it did not."""
        position, acts, num = self._slots.read(first, len(num_comparisons))
        return [
            {
                "position": int(position[rule]),
                "acts": acts[rule, :count].tolist(),
                # a rule may hold only at tokens that are computed again after a preemption, which are not counted twice
                "num_tokens": max(1, int(num[rule])),
            }
            if int(position[rule]) < FOREVER
            else None
            for rule, count in enumerate(num_comparisons)
        ]
