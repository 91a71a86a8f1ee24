"""Worker process: the rule state, kept on the device: one slot per rule of each running request. Free of vLLM."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saeclamp.types import MAX_TESTS
from saeclamp_server.engine.worker.slot_pool import SlotPool
from saeclamp_server.steering.token_ranges import NO_END


class RuleState:
    """Per rule: first position at which it held, the activations there, and the number of tokens at which it held."""

    def __init__(self, device: torch.device) -> None:
        # first position, activations there, number of tokens. As wide as the longest rule, since all rules share the tensors
        self._slots = SlotPool(
            [(1, torch.int64, NO_END), (MAX_TESTS, torch.float32, 0.0), (1, torch.int64, 0)],
            device,
        )
        self._nowhere = self._slots.allocate(1)
        """Slot that is written to in place of none, and never read."""
        self.is_deferred = False
        """True if counts wait for `commit_accepted`, as some of the tokens may be drafts."""
        self._pending: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        """Deferred (slot, position, counts, batch_row) of this step's updates."""
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
        is_met: Tensor,
        acts: Tensor,
        counted: Tensor,
        batch_row: Tensor,
    ) -> Tensor:
        """
        Update the state of rules, and return the first position at which each row's rule has held so far.

        A first position at or behind a row's `start` is dropped before: that token is computed again, or it was a draft, and
        another token is there now.

        slot, position, start, batch_row: (num_rows,) int64
        is_met:      (num_rows,) bool, True where the condition holds at the row's token
        counted:     (num_rows,) bool, True where the token was not counted before
        acts:        (num_rows, num_comparisons)
        returns:     (num_rows,) int64, `NO_END` where the rule has not held
        """
        first, first_acts, num = self._slots.tensors
        first[slot, 0] = torch.where(first[slot, 0] >= start, NO_END, first[slot, 0])
        first[:, 0].scatter_reduce_(0, slot, torch.where(is_met, position, NO_END), "amin")
        is_first = is_met & (position == first[slot, 0])
        # rows that are not the first write to the slot that nobody reads: a selection would wait for the device
        first_acts[torch.where(is_first, slot, self._nowhere), : acts.shape[1]] = acts
        if self.is_deferred:
            self._pending.append((slot, position, is_met & counted, batch_row))
        else:
            num[:, 0].index_add_(0, slot, (is_met & counted).to(num.dtype))
        return first[slot, 0]

    def commit_accepted(self, is_kept: Tensor) -> None:
        """
        Add deferred counts of accepted tokens, and drop first positions at rejected drafts.

        is_kept: (num_tokens,) bool, by row of the batch
        """
        first, _, num = self._slots.tensors
        for slot, position, counts, batch_row in self._pending:
            kept = is_kept[batch_row]
            num[:, 0].index_add_(0, slot, (counts & kept).to(num.dtype))
            is_draft = ~kept & (position == first[slot, 0])
            # one row of a rule at most is at its first position. Where that was rejected, so was all that follows it, so no
            # later position takes its place
            first[torch.where(is_draft, slot, self._nowhere), 0] = NO_END
        self._pending = []

    def first(self, slots: Tensor) -> Tensor:
        """
        Return the first positions at which rules held.

        slots:   (num_rules,) int64
        returns: (num_rules,) int64, a copy; `NO_END` where a rule has not held
        """
        return self._slots.tensors[0][slots, 0]

    def read(self, first: int, num_comparisons: list[int]) -> list[dict[str, Any] | None]:
        """Fetch the state of consecutive rules, with these numbers of comparisons; None for a rule that has not held."""
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
