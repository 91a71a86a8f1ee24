"""
Worker process: the kernel that judges rules, at all tokens of a step at once, or one by one where a rule aggregates.

It has no vector in registers, so an instance is one warp.
"""

# ruff: noqa: SIM102 (an `and` in a kernel computes both sides)
from __future__ import annotations

import triton
import triton.language as tl

from saeclamp_server.engine.worker.kernel_parts import (
    AGGREGATED,
    AGGREGATES,
    COUNTED_TO,
    FLAGS,
    NUMBER,
    RULES,
    SLOT,
    aggregate,
    in_scope,
    is_met,
)


@triton.jit
def judge(
    step: tl.tuple,
    aggregates: tl.tuple,
    conditions: tl.tuple,
    programs: tl.tuple,
    ACTS: tl.constexpr,
    IS_DEFERRED: tl.constexpr,
) -> None:
    """
    Judge the rules that have all their activations at this site, at a token.

    Rules with aggregates are judged by the instance of the program's first token, at all its tokens one after the other.
    """
    token = tl.program_id(0).to(tl.int64)
    program = tl.load(step.program + token)
    if program < 0:
        return
    first_rule, last_rule = tl.load(conditions.spans + program * 2), tl.load(conditions.spans + program * 2 + 1)
    if first_rule == last_rule:
        return
    _judge_token(step, conditions, programs, program, token, first_rule, last_rule, 0, ACTS, IS_DEFERRED)
    first, last = tl.load(aggregates.spans + program * 2), tl.load(aggregates.spans + program * 2 + 1)
    begin = tl.load(programs.step_rows + program * 2)
    if (first == last) | (token != begin):
        return
    for nth in range(tl.load(programs.step_rows + program * 2 + 1)):
        at = token + nth
        for row in range(first, last):
            ints = aggregates.ints + row * 8
            total, num, value = aggregate(ints, programs, step, program, at, ACTS)
            number = tl.load(ints + SLOT)
            # one thread stores what all have loaded, and load again at the next token
            tl.debug_barrier()
            tl.store(programs.totals + (program * AGGREGATES + number) * 2, total)
            tl.store(programs.totals + (program * AGGREGATES + number) * 2 + 1, num)
            if IS_DEFERRED:
                tl.store(step.totals + (at * AGGREGATES + number) * 2, total)
                tl.store(step.totals + (at * AGGREGATES + number) * 2 + 1, num)
            tl.store(step.acts + at * ACTS + tl.load(ints + NUMBER), value)
        tl.debug_barrier()
        _judge_token(step, conditions, programs, program, at, first_rule, last_rule, AGGREGATED, ACTS, IS_DEFERRED)


@triton.jit
def _judge_token(
    step: tl.tuple,
    conditions: tl.tuple,
    programs: tl.tuple,
    program: tl.tensor,
    token: tl.tensor,
    first_rule: tl.tensor,
    last_rule: tl.tensor,
    KIND_OF_RULES: tl.constexpr,
    ACTS: tl.constexpr,
    IS_DEFERRED: tl.constexpr,
) -> None:
    """Judge the rules that are AGGREGATED, or (0) those that are not."""
    position, is_sink = tl.load(step.position + token), tl.load(step.is_sink + token)
    counted_to = tl.load(programs.headers + program * 4 + COUNTED_TO)
    verdicts, unjudged = tl.full((), 0, tl.int32), tl.full((), 0, tl.int32)
    for row in range(first_rule, last_rule):
        ints = conditions.ints + row * 8
        if tl.load(ints + FLAGS) & AGGREGATED == KIND_OF_RULES:
            if in_scope(ints, programs, position, is_sink):
                number = tl.load(ints + NUMBER)
                bit, slot = (1 << number).to(tl.int32), program * RULES + number
                holds, is_judged = is_met(ints, programs, step.acts + token * ACTS)
                if holds:
                    verdicts |= bit
                    tl.atomic_min(programs.first_held + slot, position.to(tl.int32), sem="relaxed")
                if is_judged == 0:
                    unjudged |= bit
                if not IS_DEFERRED:
                    if position >= counted_to:
                        tl.atomic_add(programs.num_held + slot, 1, mask=holds, sem="relaxed")
                        tl.atomic_add(programs.num_unjudged + slot, 1, mask=is_judged == 0, sem="relaxed")
    # the instance of another token may judge other rules at this one
    tl.atomic_or(step.verdicts + token, verdicts, sem="relaxed")
    tl.atomic_or(step.unjudged + token, unjudged, sem="relaxed")
