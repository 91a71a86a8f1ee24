"""Worker process: where rules held, noted on the device: one slot per rule of each live request. Free of vLLM."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saeclamp.types import MAX_TESTS
from saeclamp_server.engine.worker.slot_pool import SlotPool
from saeclamp_server.steering.token_ranges import NO_END


class RuleState:
    """Of each rule: the first position at which it held, the activations there, and at how many it held."""

    def __init__(self, device: torch.device) -> None:
        self._slots = SlotPool(
            [(1, torch.int64, NO_END), (MAX_TESTS, torch.float32, 0.0), (1, torch.int64, 0)],
            device,
        )
        self._nowhere = self._slots.allocate(1)
        self.is_deferred = False
        """Whether counts wait for `commit_accepted`: some of the tokens may be drafts."""
        self._loaded: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self.device = device

    def allocate(self, num_rules: int) -> int:
        """Reserve consecutive slots of rules that have not held, and return the first."""
        return self._slots.allocate(num_rules)

    def release(self, first: int, num_rules: int) -> None:
        """Return slots for reuse by a request with as many rules."""
        self._slots.release(first, num_rules)

    def update(
        self,
        slot: Tensor,
        position: Tensor,
        start: Tensor,
        is_deferred: Tensor,
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
        returns: (num_rows,) int64, `NO_END` where it has not held
        """
        first, first_acts, num = self._slots.tensors
        first[slot, 0] = torch.where(first[slot, 0] >= start, NO_END, first[slot, 0])
        first[:, 0].scatter_reduce_(0, slot, torch.where(is_deferred, position, NO_END), "amin")
        is_first = is_deferred & (position == first[slot, 0])
        # rows that are not the first write to a slot that nobody reads: a selection would need a round trip to the host
        first_acts[torch.where(is_first, slot, self._nowhere), : acts.shape[1]] = acts
        if self.is_deferred:
            self._loaded.append((slot, position, is_deferred & counted, batch_row))
        else:
            num[:, 0].index_add_(0, slot, (is_deferred & counted).to(num.dtype))
        return first[slot, 0]

    def commit_accepted(self, is_kept: Tensor) -> None:
        """Count what was held of the tokens that stay, (num_tokens,) bool by row of the batch; forget where drafts held."""
        first, _, num = self._slots.tensors
        for slot, position, counts, batch_row in self._loaded:
            kept = is_kept[batch_row]
            num[:, 0].index_add_(0, slot, (counts & kept).to(num.dtype))
            is_draft = ~kept & (position == first[slot, 0])
            # one row of a rule at most is at its first position
            first[torch.where(is_draft, slot, self._nowhere), 0] = NO_END
        self._loaded = []

    def first(self, slots: Tensor) -> Tensor:
        """
        First positions at which rules held.

        slots:   (num_rules,) int64
        returns: (num_rules,) int64, a copy; `NO_END` where a rule has not held
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
            if int(position[rule]) < NO_END
            else None
            for rule, count in enumerate(num_comparisons)
        ]
