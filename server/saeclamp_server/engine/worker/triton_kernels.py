"""
Worker process: what the tables say, done by Triton kernels with an instance for each token, or for each request.

A launch depends on nothing that changes from step to step but its grid; it allocates nothing and never waits for the device,
so it can be captured in a CUDA graph: the contents of the tables, which stay where they are, decide what a replay does.

`map_tokens` begins a step. At each site `read` reads, `judge` judges, and `edit` edits. They are launches of their own, as
all that one has written is in only when it has ended: a rule may look at the activations of several tokens, and one that
lasts holds from the smallest of all positions on at which its condition held.
`settle` ends a step with drafts. The torch executor does the same, and says the same in fewer words.

Imports neither vllm nor torch's own operations.
"""

# ruff: noqa: SIM102 (an `and` in a kernel computes both sides)
from __future__ import annotations

import triton
import triton.language as tl

from saeclamp_server.engine.worker.kernel_parts import (
    ACT_SUM,
    AGGREGATES,
    CARRIED,
    COLUMN,
    COUNTED_TO,
    DOSE_SUM,
    EDITS,
    FLAGS,
    FOREVER,
    LEFT_OUT,
    MAX_NORM,
    NUMBER,
    PROMPT_LEN,
    REACHED,
    ROW_NORM,
    RULES,
    SINKS,
    SPECIAL,
    SUMS,
    TESTS,
    TINY,
    WRITE,
    activation,
    both_rows,
    count,
    count_left_out,
    encoder_row,
    in_scope,
    is_allowed,
    moved,
    site_vector,
)


@triton.jit
def map_tokens(
    batch: tl.tuple,
    step: tl.tuple,
    programs: tl.tuple,
    num_tokens_max: tl.tensor,
    ACTS: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
) -> None:
    """Tell the tokens of a request their program; the last instance leaves all behind the batch without one."""
    request = tl.program_id(0)
    lanes, wide = tl.arange(0, BLOCK), tl.arange(0, WIDE)
    begin = tl.load(batch.first_row + request)
    if request == tl.num_programs(0) - 1:
        # of any length that a captured graph pads the batch to
        for row in range(begin, num_tokens_max, BLOCK):
            tl.store(step.program + row + lanes, -1, mask=row + lanes < num_tokens_max)
        return
    end = tl.load(batch.first_row + request + 1)
    program = tl.load(batch.program + request).to(tl.int64)
    for row in range(begin, end, BLOCK):
        at = row + lanes
        here = at < end
        position = tl.load(batch.positions + at, mask=here, other=1)
        token = tl.load(batch.input_ids + at, mask=here, other=0)
        is_special = tl.load(batch.is_special + token, mask=here, other=0)
        tl.store(step.program + at, program, mask=here)
        tl.store(step.position + at, position, mask=here)
        tl.store(step.is_sink + at, ((position == 0) | (is_special != 0)).to(tl.int8), mask=here)
        tl.store(step.verdicts + at, 0, mask=here)
        tl.store(step.unjudged + at, 0, mask=here)
        tl.store(step.is_edited + at, tl.zeros((BLOCK,), tl.int8), mask=here)
        tl.store(step.is_lost + at, tl.zeros((BLOCK,), tl.int8), mask=here)
    if (program < 0) | (begin == end):
        return
    for row in range(begin, end):
        tl.store(step.acts + row * ACTS + wide, float("nan"), mask=wide < ACTS)
        tl.store(step.items + row * (2 * EDITS) + wide, float("nan"), mask=wide < 2 * EDITS)
    start = tl.load(batch.positions + begin).to(tl.int32)
    # what was found at positions that are computed again is void: another token may be there now
    rules = tl.arange(0, RULES)
    held = tl.load(programs.first_held + program * RULES + rules)
    tl.store(programs.first_held + program * RULES + rules, tl.where(held >= start, FOREVER, held))
    header = programs.headers + program * 4
    reached = tl.load(header + REACHED)
    tl.store(header + COUNTED_TO, reached)
    tl.store(programs.step_rows + program * 2, begin)
    tl.store(programs.step_rows + program * 2 + 1, end - begin)
    tl.store(header + REACHED, tl.maximum(reached, start + end - begin))


@triton.jit
def read(
    hidden: tl.tensor,
    residual: tl.tensor,
    step: tl.tuple,
    reads: tl.tuple,
    programs: tl.tuple,
    sink_norm: tl.tensor,
    hidden_stride: tl.tensor,
    residual_stride: tl.tensor,
    norm_eps: tl.tensor,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    WHOLE_STREAM: tl.constexpr,
    HAS_NORM: tl.constexpr,
    ACTS: tl.constexpr,
) -> None:
    """Read the activations of a token that are asked for at this site."""
    token = tl.program_id(0).to(tl.int64)
    program = tl.load(step.program + token)
    if program < 0:
        return
    first, last = tl.load(reads.spans + program * 2), tl.load(reads.spans + program * 2 + 1)
    if first == last:
        return
    position, is_sink = tl.load(step.position + token), tl.load(step.is_sink + token)
    x = site_vector(hidden, residual, token, hidden_stride, residual_stride, norm_eps, D, BLOCK, WHOLE_STREAM, HAS_NORM)
    is_long = (tl.sqrt(tl.sum(x * x)) > tl.load(sink_norm)) & (tl.load(step.is_edited + token) == 0)
    for row in range(first, last):
        ints = reads.ints + row * 8
        if in_scope(ints, programs, position, is_sink):
            flags, number = tl.load(ints + FLAGS), tl.load(ints + NUMBER)
            encoder = encoder_row(reads.rows + row * 2, flags, D, BLOCK)
            act, scale = activation(x, encoder, reads.floats + row * 8, flags, D, BLOCK)
            if is_long & (flags & SPECIAL == 0):
                act = float("nan")
            if flags & CARRIED != 0:
                tl.store(step.carried + (token * EDITS + number) * 2, act)
                tl.store(step.carried + (token * EDITS + number) * 2 + 1, scale)
            else:
                tl.store(step.acts + token * ACTS + number, act)


@triton.jit
def edit(
    hidden: tl.tensor,
    residual: tl.tensor,
    step: tl.tuple,
    edits: tl.tuple,
    conditions: tl.tuple,
    programs: tl.tuple,
    sink_norm: tl.tensor,
    hidden_stride: tl.tensor,
    residual_stride: tl.tensor,
    norm_eps: tl.tensor,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    WHOLE_STREAM: tl.constexpr,
    HAS_NORM: tl.constexpr,
    ACTS: tl.constexpr,
    IS_DEFERRED: tl.constexpr,
) -> None:
    """
    Add all edits of a token at this site, and count them.

    The whole vector is in registers, so every activation is of the unedited one: `hidden` is written after all reads.
    """
    token = tl.program_id(0).to(tl.int64)
    program = tl.load(step.program + token)
    if program < 0:
        return
    position = tl.load(step.position + token)
    _note_first_acts(step, conditions, programs, program, token, position, ACTS)
    first, last = tl.load(edits.spans + program * 2), tl.load(edits.spans + program * 2 + 1)
    if first == last:
        return
    is_sink, verdicts = tl.load(step.is_sink + token), tl.load(step.verdicts + token)
    column = tl.arange(0, BLOCK)
    inside = column < D
    x = site_vector(hidden, residual, token, hidden_stride, residual_stride, norm_eps, D, BLOCK, WHOLE_STREAM, HAS_NORM)
    stream = x
    if residual is not None:
        if not WHOLE_STREAM:
            stream += tl.load(residual + token * residual_stride + column, mask=inside, other=0.0).to(tl.float32)
    # tiny: a zero vector gives a large dose, not NaN
    length = tl.maximum(tl.sqrt(tl.sum(stream * stream)), TINY)
    is_long = (tl.sqrt(tl.sum(x * x)) > tl.load(sink_norm)) & (tl.load(step.is_edited + token) == 0)
    counted_to = tl.load(programs.headers + program * 4 + COUNTED_TO)
    change = tl.zeros((BLOCK,), dtype=tl.float32)
    num_made = 0
    for row in range(first, last):
        ints, floats = edits.ints + row * 8, edits.floats + row * 8
        if in_scope(ints, programs, position, is_sink) & is_allowed(ints, programs, program, position, verdicts):
            flags, number = tl.load(ints + FLAGS), tl.load(ints + NUMBER)
            encoder, decoder = both_rows(edits.rows + row * 2, flags, D, BLOCK)
            if flags & CARRIED != 0:
                act = tl.load(step.carried + (token * EDITS + number) * 2)
                scale = tl.load(step.carried + (token * EDITS + number) * 2 + 1)
                is_left_out = act != act
            else:
                act, scale = activation(x, encoder, floats, flags, D, BLOCK)
                is_left_out = is_long & (flags & SPECIAL == 0)
            # counted at the first site alone: an SAE that writes to several makes one edit, not several
            is_first, is_new = tl.load(ints + WRITE) == 0, position >= counted_to
            items = step.items + (token * EDITS + number) * 2
            if is_left_out:
                if is_first:
                    tl.store(items + 1, LEFT_OUT)
                    if is_new & (not IS_DEFERRED):
                        count_left_out(programs, program, number, position)
            else:
                units = moved(floats, act) * scale
                change += units * decoder
                num_made += 1
                if is_first:
                    dose = tl.abs(units) * tl.load(floats + ROW_NORM) / length
                    tl.store(items, act)
                    tl.store(items + 1, dose)
                    if is_new & (not IS_DEFERRED):
                        count(programs, program, number, position, act, dose)
    # adding zero would not do: it turns -0.0 into 0.0
    if num_made > 0:
        if not is_long:
            # long from here on because of its edits; a sink that is edited on purpose stays one at later sites
            tl.store(step.is_edited + token, tl.full((), 1, tl.int8))
        _write_edited(hidden + token * hidden_stride + column, inside, x, change, step, token, BLOCK)


@triton.jit
def _write_edited(
    place: tl.tensor,
    inside: tl.tensor,
    x: tl.tensor,
    change: tl.tensor,
    step: tl.tuple,
    token: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Add the change of a token's vector to the summand at `place`, or mark the token as lost."""
    edited = x + change
    is_sound = tl.sqrt(tl.sum(edited * edited)) <= MAX_NORM  # which NaN is not
    if is_sound:
        summand = tl.load(place, mask=inside, other=0.0).to(tl.float32)
        tl.store(place, (summand + change).to(place.dtype.element_ty), mask=inside)
    else:
        lost = tl.full((BLOCK,), float("nan"), tl.float32)
        tl.store(place, lost.to(place.dtype.element_ty), mask=inside)
        tl.store(step.is_lost + token, tl.full((), 1, tl.int8))


@triton.jit
def settle(step: tl.tuple, programs: tl.tuple, kept_to: tl.tensor) -> None:
    """Count what was done at a token, if it stays."""
    token = tl.program_id(0).to(tl.int64)
    program = tl.load(step.program + token)
    if program < 0:
        return
    position = tl.load(step.position + token)
    counted_to = tl.load(programs.headers + program * 4 + COUNTED_TO)
    if (position < tl.load(kept_to + program)) & (position >= counted_to):
        number = tl.arange(0, EDITS)
        items = step.items + (token * EDITS + number) * 2
        act, dose = tl.load(items), tl.load(items + 1)
        was_made, was_left_out = act == act, (act != act) & (dose == LEFT_OUT)
        is_generated = (position >= tl.load(programs.headers + program * 4 + PROMPT_LEN)).to(tl.int32)
        sums, peaks = programs.sums + (program * EDITS + number) * SUMS, programs.peaks + (program * EDITS + number) * 2
        one = tl.full((EDITS,), 1.0, tl.float64)
        tl.atomic_add(sums + is_generated, one, mask=was_made, sem="relaxed")
        tl.atomic_add(sums + ACT_SUM, act.to(tl.float64), mask=was_made, sem="relaxed")
        tl.atomic_add(sums + DOSE_SUM, dose.to(tl.float64), mask=was_made, sem="relaxed")
        tl.atomic_add(sums + SINKS + is_generated, one, mask=was_left_out, sem="relaxed")
        tl.atomic_max(peaks, act, mask=was_made, sem="relaxed")
        tl.atomic_max(peaks + 1, dose, mask=was_made, sem="relaxed")
        rule, ones = tl.arange(0, RULES), tl.full((RULES,), 1, tl.int32)
        held, unjudged = tl.load(step.verdicts + token) >> rule, tl.load(step.unjudged + token) >> rule
        tl.atomic_add(programs.num_held + program * RULES + rule, ones, mask=held & 1 != 0, sem="relaxed")
        tl.atomic_add(programs.num_unjudged + program * RULES + rule, ones, mask=unjudged & 1 != 0, sem="relaxed")
    if position == tl.load(kept_to + program) - 1:
        # what drafts behind it have added is void
        pair = tl.arange(0, 2 * AGGREGATES)
        totals = tl.load(step.totals + token * (2 * AGGREGATES) + pair)
        tl.store(programs.totals + program * (2 * AGGREGATES) + pair, totals)


@triton.jit
def settle_programs(programs: tl.tuple, kept_to: tl.tensor) -> None:
    """Take back what rules of a program found at rejected drafts."""
    program = tl.program_id(0).to(tl.int64)
    end = tl.load(kept_to + program).to(tl.int32)
    rule = tl.arange(0, RULES)
    held = tl.load(programs.first_held + program * RULES + rule)
    tl.store(programs.first_held + program * RULES + rule, tl.where(held >= end, FOREVER, held))
    reached = programs.headers + program * 4 + REACHED
    tl.store(reached, tl.minimum(tl.load(reached), end))


@triton.jit
def _note_first_acts(
    step: tl.tuple,
    conditions: tl.tuple,
    programs: tl.tuple,
    program: tl.tensor,
    token: tl.tensor,
    position: tl.tensor,
    ACTS: tl.constexpr,
) -> None:
    """Note what was compared at the first position at which a rule held, which is known only now."""
    first, last = tl.load(conditions.spans + program * 2), tl.load(conditions.spans + program * 2 + 1)
    verdicts = tl.load(step.verdicts + token)
    test = tl.arange(0, TESTS)
    for row in range(first, last):
        ints = conditions.ints + row * 8
        number = tl.load(ints + NUMBER)
        slot = program * RULES + number
        if ((verdicts >> number) & 1 != 0) & (position == tl.load(programs.first_held + slot)):
            acts = tl.load(step.acts + token * ACTS + tl.load(ints + COLUMN) + test)
            tl.store(programs.first_acts + slot * TESTS + test, acts)
