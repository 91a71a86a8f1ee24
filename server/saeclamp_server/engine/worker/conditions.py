"""Worker process: conditions of rules, run with torch, and what they aggregate over the tokens so far."""

from __future__ import annotations

import torch
from torch import Tensor

from saeclamp_server.engine.worker.program_layout import (
    BEGIN,
    END,
    KIND,
    NUMBER,
    RECENT,
    SLOT,
    SOURCE,
    WINDOW,
    Aggregate,
    Operation,
)
from saeclamp_server.engine.worker.program_tables import ProgramTables
from saeclamp_server.engine.worker.step_tables import StepTables


def run_conditions(ints: Tensor, token: Tensor, acts: Tensor, programs: ProgramTables) -> tuple[Tensor, Tensor]:
    """
    Run (token, rule) pairs' conditions, on a stack that is the bits of a number.

    ints:    (num_pairs, 8) int64, rows of rules
    token:   (num_pairs,), row of `acts`
    acts:    (num_tokens, READS or more), NaN where an activation was not read
    returns: (num_pairs,) bool; (num_pairs,) bool, False where an activation was not read, as the token is a sink: there no
        condition holds, not even a negated one
    """
    begin, end = ints[:, BEGIN], ints[:, END]
    stack, height = torch.zeros_like(begin), torch.zeros_like(begin)
    is_judged = torch.ones_like(begin, dtype=torch.bool)
    for number in range(int((end - begin).max())):
        is_running = begin + number < end
        at = torch.where(is_running, begin + number, begin)
        operation, operand = programs.code[at].long().unbind(dim=1)
        bound, sign = programs.bounds[at].unbind(dim=1)
        is_comparison = operation == Operation.COMPARE
        act = acts[token, torch.where(is_comparison, operand, 0)]
        is_judged &= ~(is_running & is_comparison & act.isnan())
        compared = torch.where(sign > 0, act > bound, act < bound)
        num_parts = torch.where(is_comparison, 0, torch.where(operation == Operation.NOT, 1, operand))
        mask = (1 << num_parts) - 1
        parts = (stack >> (height - num_parts).clamp(min=0)) & mask
        joined = torch.where(operation == Operation.ALL, parts == mask, parts != 0)
        result = torch.where(is_comparison, compared, torch.where(operation == Operation.NOT, parts == 0, joined))
        below = height - num_parts
        pushed = (stack & ((1 << below.clamp(min=0)) - 1)) | (result.long() << below.clamp(min=0))
        stack, height = torch.where(is_running, pushed, stack), torch.where(is_running, below + 1, height)
    return (stack != 0) & is_judged, is_judged


def aggregate(ints: Tensor, token: Tensor, programs: ProgramTables, step: StepTables) -> None:
    """
    Take the activations of a step into the aggregates of one site, and write what they are at each token.

    ints:  (num_pairs, 8) int64, rows of aggregates
    token: (num_pairs,), row of the step tables, ascending
    """
    program = step.program[token]
    for number, slot in torch.unique(torch.stack((program, ints[:, SLOT]), dim=1), dim=0).tolist():
        mine = (program == number) & (ints[:, SLOT] == slot)
        own, rows = ints[mine][0], token[mine]
        acts = step.acts[rows, own[SOURCE]]
        # NaN where it was not read: outside the rule's scope, and at sinks
        is_looked_at = ~acts.isnan()
        values, totals = _running(acts[is_looked_at], own, programs.totals[number, slot], programs.recent[number, slot])
        step.acts[rows[is_looked_at], own[NUMBER]] = values.float()
        # the totals behind each token; where it was not looked at, those of before
        step.totals[rows, slot] = totals[is_looked_at.cumsum(0)]
        programs.totals[number, slot] = totals[-1]


def _running(acts: Tensor, own: Tensor, total: Tensor, recent: Tensor) -> tuple[Tensor, Tensor]:
    """
    Aggregate activations that follow on those so far.

    acts:    (num_tokens,)
    own:     (8,), the row of the aggregate
    total:   (2,), as in `ProgramTables.totals`
    recent:  (RECENT,), as there; the activations are written to it
    returns: (num_tokens,) fp64; totals before the first and behind each, (num_tokens + 1, 2)
    """
    before, num, window = total[0], int(total[1]), int(own[WINDOW])
    counts = num + torch.arange(len(acts) + 1, dtype=torch.float64)
    if own[KIND] == Aggregate.MAX:
        start = before if num else torch.tensor(-torch.inf, dtype=torch.float64)
        sums = torch.cat((start[None], acts.double())).cummax(0).values
        values = sums[1:]
    else:
        sums = torch.cat((before[None], acts.double())).cumsum(0)
        values = sums[1:] / counts[1:]
    if window:
        kept = min(num, window - 1)
        history = torch.cat((recent[(num - kept + torch.arange(kept)) % RECENT], acts)).double()
        values = torch.stack(
            [history[max(0, kept + at + 1 - window) : kept + at + 1].mean() for at in range(len(acts))]
            or [torch.zeros(0)],
        ).view(-1)
    last = acts[-RECENT:]
    recent[(num + len(acts) - len(last) + torch.arange(len(last))) % RECENT] = last
    if not num and own[KIND] == Aggregate.MAX:
        sums[0] = 0.0
    return values, torch.stack((sums, counts), dim=1)
