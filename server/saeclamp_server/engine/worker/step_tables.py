"""
Worker process: the step tables: for each token of the batch its program and position, what was read of it, what was done.

Like the program tables they stay where they are. `map_tokens` begins a step, the op of each site goes on.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from saeclamp.types import MAX_TESTS
from saeclamp_server.engine.worker.program_layout import (
    AGGREGATES,
    COUNTED_TO,
    EDITS,
    FOREVER,
    REACHED,
    READS,
)
from saeclamp_server.engine.worker.program_tables import ProgramTables


class Batch(NamedTuple):
    """The batch of a step, as vLLM's runner has it on the device."""

    program: Tensor
    """(num_requests,) int32, program of each request; -1: it has none"""
    first_row: Tensor
    """(num_requests + 1,) int32, row of each request's first token; the last one is behind all tokens"""
    positions: Tensor
    """(num_tokens or more,) int64"""
    input_ids: Tensor
    """(num_tokens or more,) int32"""
    num_tokens: int


class StepTables:
    """Tables of a worker with a row for each token of a batch."""

    def __init__(self, num_tokens: int, is_special: Tensor, carries: bool) -> None:
        """
        num_tokens: of a batch, at most
        is_special: (vocab_size,) bool, on the model's device
        carries:    True if activations are kept from the site where an SAE reads to those where it writes
        """
        device = is_special.device
        self.is_special = is_special
        self.program = torch.full((num_tokens,), -1, dtype=torch.int64, device=device)
        """(num_tokens,), program of each token; -1: none"""
        self.position = torch.zeros(num_tokens, dtype=torch.int64, device=device)
        self.is_sink = torch.zeros(num_tokens, dtype=torch.bool, device=device)
        """(num_tokens,): special tokens and position 0. Sinks behind it are known by their vectors alone, at each site"""
        # as wide as a rule is long, behind the last column too: a rule's activations are gathered at once
        self.acts = torch.full((num_tokens, READS + MAX_TESTS), torch.nan, device=device)
        """(num_tokens, READS + ...) fp32, activations that were read, by their column; NaN where none was"""
        self.carried = torch.zeros(num_tokens if carries else 0, EDITS, 2, device=device)
        """(num_tokens, EDITS, 2) fp32, of edits of another site: activation, NaN at a sink, and the token's own scale"""
        self.items = torch.full((num_tokens, EDITS, 2), torch.nan, device=device)
        """
        (num_tokens, EDITS, 2) fp32, of edits that were made: activation before, dose. NaN where one was not; where it was
        left out because the token is a sink, the dose is LEFT_OUT.
        """
        self.totals = torch.zeros(num_tokens, AGGREGATES, 2, dtype=torch.float64, device=device)
        """(num_tokens, AGGREGATES, 2) fp64, totals of the program after each token, kept where it may be a draft"""
        self.verdicts = torch.zeros(num_tokens, dtype=torch.int32, device=device)
        """(num_tokens,), a bit for each rule, 1 where its condition holds"""
        self.unjudged = torch.zeros(num_tokens, dtype=torch.int32, device=device)
        """(num_tokens,), a bit for each rule in whose scope the token is, but which was not judged, as it is a sink"""
        self.is_edited = torch.zeros(num_tokens, dtype=torch.bool, device=device)
        """(num_tokens,): edited at an earlier site where it was no sink: however long its vector is since, it is none"""
        self.is_lost = torch.zeros(num_tokens, dtype=torch.bool, device=device)
        """(num_tokens,): an edit left a vector that is not finite, or too long"""
        self.num_tokens = 0
        """Tokens of the step, on the host; 0 where none of them has a program."""


def map_tokens(batch: Batch, programs: ProgramTables, step: StepTables) -> None:
    """
    Begin a step: tell each token its program, and forget what earlier steps computed of positions that are computed again.

    Those were rejected drafts, or come again after a preemption; another token may be there now.
    """
    num = step.num_tokens = batch.num_tokens
    first_row = batch.first_row.long()
    num_rows = first_row[1:] - first_row[:-1]
    step.program[:num] = torch.repeat_interleave(batch.program.long(), num_rows, output_size=num)
    positions = step.position[:num] = batch.positions[:num]
    step.is_sink[:num] = step.is_special[batch.input_ids[:num]] | (positions == 0)
    step.acts[:num] = torch.nan
    step.items[:num] = torch.nan
    step.verdicts[:num] = 0
    step.unjudged[:num] = 0
    step.is_edited[:num] = False
    step.is_lost[:num] = False
    has_program = (batch.program >= 0) & (num_rows > 0)
    of = batch.program[has_program].long()
    start = positions[first_row[:-1][has_program]].int()
    behind = start + num_rows[has_program].int()
    held = programs.first_held[of]
    programs.first_held[of] = torch.where(held >= start[:, None], FOREVER, held)
    programs.step_rows[of] = torch.stack((first_row[:-1], num_rows), dim=1)[has_program].int()
    reached = programs.headers[of, REACHED]
    programs.headers[of, COUNTED_TO] = reached
    programs.headers[of, REACHED] = torch.maximum(reached, behind)
