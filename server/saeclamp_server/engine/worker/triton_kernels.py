"""
Worker process: what the tables say, done by Triton kernels with an instance for each token, or for each request.

A launch depends on nothing that changes from step to step but its grid; it allocates nothing and never waits for the device,
so it can be captured in a CUDA graph: the contents of the tables, which stay where they are, decide what a replay does.

`_map_tokens` begins a step. At each site `_judge` reads and judges, then `_edit` edits: two launches, because a rule that
lasts holds from the smallest of all positions on at which its condition held, and all are in only when a launch has ended.
`_settle` ends a step with drafts. The torch executor does the same, and says the same in fewer words.

Imports neither vllm nor torch's own operations.
"""

# ruff: noqa: SIM102 (an `and` in a kernel computes both sides)
from __future__ import annotations

import triton
import triton.language as tl

from saeclamp_server.engine.worker import program_layout as layout

# kernels see global names only if they are constexpr
_EDITS, _RULES, _TESTS = tl.constexpr(layout.EDITS), tl.constexpr(layout.RULES), tl.constexpr(layout.TESTS)
_FOREVER = tl.constexpr(layout.FOREVER)
_FIRST, _LAST, _FLAGS, _NUMBER = (tl.constexpr(column) for column in range(4))
_RULE, _WRITE = tl.constexpr(layout.RULE), tl.constexpr(layout.WRITE)
_BEGIN, _END = tl.constexpr(layout.BEGIN), tl.constexpr(layout.END)
_COLUMN, _COMPARISONS = tl.constexpr(layout.COLUMN), tl.constexpr(layout.COMPARISONS)
_MANY, _SPECIAL, _LASTING = tl.constexpr(layout.MANY), tl.constexpr(layout.SPECIAL), tl.constexpr(layout.LASTING)
_CARRIED, _CENTERED = tl.constexpr(layout.CARRIED), tl.constexpr(layout.CENTERED)
_BY_STD, _BY_LENGTH = tl.constexpr(layout.BY_STD), tl.constexpr(layout.BY_LENGTH)
_BIAS, _THRESHOLD = tl.constexpr(layout.BIAS), tl.constexpr(layout.THRESHOLD)
_ROW_NORM, _NORM_EPS = tl.constexpr(layout.ROW_NORM), tl.constexpr(layout.NORM_EPS)
_PROMPT_LEN, _COUNTED_TO = tl.constexpr(layout.PROMPT_LEN), tl.constexpr(layout.COUNTED_TO)
_REACHED = tl.constexpr(layout.REACHED)
_COMPARE, _ALL, _NOT = (
    tl.constexpr(int(op)) for op in (layout.Operation.COMPARE, layout.Operation.ALL, layout.Operation.NOT)
)
_SEARCHES = tl.constexpr(layout.RANGES.bit_length())
_MAX_NORM = tl.constexpr(layout.MAX_NORM)
_TINY = tl.constexpr(1.1754943508222875e-38)


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
        tl.store(step.is_lost + at, tl.zeros((BLOCK,), tl.int8), mask=here)
    if (program < 0) | (begin == end):
        return
    for row in range(begin, end):
        tl.store(step.acts + row * ACTS + wide, float("nan"), mask=wide < ACTS)
        tl.store(step.items + row * (2 * _EDITS) + wide, float("nan"), mask=wide < 2 * _EDITS)
    start = tl.load(batch.positions + begin).to(tl.int32)
    # what was found at positions that are computed again is void: another token may be there now
    rules = tl.arange(0, _RULES)
    held = tl.load(programs.first_held + program * _RULES + rules)
    tl.store(programs.first_held + program * _RULES + rules, tl.where(held >= start, _FOREVER, held))
    header = programs.headers + program * 4
    reached = tl.load(header + _REACHED)
    tl.store(header + _COUNTED_TO, reached)
    tl.store(header + _REACHED, tl.maximum(reached, start + end - begin))


@triton.jit
def judge(
    hidden: tl.tensor,
    residual: tl.tensor,
    step: tl.tuple,
    reads: tl.tuple,
    conditions: tl.tuple,
    programs: tl.tuple,
    hidden_stride: tl.tensor,
    residual_stride: tl.tensor,
    norm_eps: tl.tensor,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    ROW: tl.constexpr,
    WHOLE_STREAM: tl.constexpr,
    HAS_NORM: tl.constexpr,
    ACTS: tl.constexpr,
    IS_DEFERRED: tl.constexpr,
) -> None:
    """Read the activations of a token that are asked for at this site, and judge the rules that have all of theirs."""
    token = tl.program_id(0).to(tl.int64)
    program = tl.load(step.program + token)
    if program < 0:
        return
    first_read, last_read = tl.load(reads.spans + program * 2), tl.load(reads.spans + program * 2 + 1)
    first_rule, last_rule = tl.load(conditions.spans + program * 2), tl.load(conditions.spans + program * 2 + 1)
    if (first_read == last_read) & (first_rule == last_rule):
        return
    position, is_sink = tl.load(step.position + token), tl.load(step.is_sink + token)
    acts = step.acts + token * ACTS
    if first_read < last_read:
        x = _site_vector(
            hidden, residual, token, hidden_stride, residual_stride, norm_eps, D, BLOCK, WHOLE_STREAM, HAS_NORM
        )
        for row in range(first_read, last_read):
            ints = reads.ints + row * 8
            if _in_scope(ints, programs, position, is_sink):
                act, scale = _activation(x, reads, row, D, BLOCK, ROW)
                number = tl.load(ints + _NUMBER)
                if tl.load(ints + _FLAGS) & _CARRIED != 0:
                    tl.store(step.carried + (token * _EDITS + number) * 2, act)
                    tl.store(step.carried + (token * _EDITS + number) * 2 + 1, scale)
                else:
                    tl.store(acts + number, act)
        # one thread has stored what all load below
        tl.debug_barrier()
    verdicts = tl.load(step.verdicts + token)
    counted_to = tl.load(programs.headers + program * 4 + _COUNTED_TO)
    for row in range(first_rule, last_rule):
        ints = conditions.ints + row * 8
        if _in_scope(ints, programs, position, is_sink):
            if _is_met(ints, programs, acts):
                number = tl.load(ints + _NUMBER)
                verdicts |= (1 << number).to(tl.int32)
                slot = program * _RULES + number
                tl.atomic_min(programs.first_held + slot, position.to(tl.int32), sem="relaxed")
                if not IS_DEFERRED:
                    if position >= counted_to:
                        tl.atomic_add(programs.num_held + slot, 1, sem="relaxed")
    tl.store(step.verdicts + token, verdicts)


@triton.jit
def edit(
    hidden: tl.tensor,
    residual: tl.tensor,
    step: tl.tuple,
    edits: tl.tuple,
    conditions: tl.tuple,
    programs: tl.tuple,
    hidden_stride: tl.tensor,
    residual_stride: tl.tensor,
    norm_eps: tl.tensor,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    ROW: tl.constexpr,
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
    place = hidden + token * hidden_stride + column
    x = _site_vector(
        hidden, residual, token, hidden_stride, residual_stride, norm_eps, D, BLOCK, WHOLE_STREAM, HAS_NORM
    )
    stream = x
    if residual is not None:
        if not WHOLE_STREAM:
            stream += tl.load(residual + token * residual_stride + column, mask=inside, other=0.0).to(tl.float32)
    # tiny: a zero vector gives a large dose, not NaN
    length = tl.maximum(tl.sqrt(tl.sum(stream * stream)), _TINY)
    change = tl.zeros((BLOCK,), dtype=tl.float32)
    num_made = 0
    for row in range(first, last):
        ints, floats = edits.ints + row * 8, edits.floats + row * 8
        if _in_scope(ints, programs, position, is_sink) & _is_allowed(ints, programs, program, position, verdicts):
            number = tl.load(ints + _NUMBER)
            # asked for before the encoder's row is summed, so that both are on their way at once
            decoder_row = tl.multiple_of(tl.load(edits.rows + row * 2 + 1).to(tl.pointer_type(ROW)), 16)
            decoder = tl.load(decoder_row + column, mask=inside, other=0.0).to(tl.float32)
            if tl.load(ints + _FLAGS) & _CARRIED != 0:
                act = tl.load(step.carried + (token * _EDITS + number) * 2)
                scale = tl.load(step.carried + (token * _EDITS + number) * 2 + 1)
            else:
                act, scale = _activation(x, edits, row, D, BLOCK, ROW)
            units = _moved(floats, act) * scale
            change += units * decoder
            num_made += 1
            # counted at the first site alone: an SAE that writes to several makes one edit, not several
            if tl.load(ints + _WRITE) == 0:
                dose = tl.abs(units) * tl.load(floats + _ROW_NORM) / length
                tl.store(step.items + (token * _EDITS + number) * 2, act)
                tl.store(step.items + (token * _EDITS + number) * 2 + 1, dose)
                if not IS_DEFERRED:
                    if position >= tl.load(programs.headers + program * 4 + _COUNTED_TO):
                        _count(programs, program, number, position, act, dose)
    # adding zero would not do: it turns -0.0 into 0.0
    if num_made > 0:
        edited = x + change
        is_sound = tl.sqrt(tl.sum(edited * edited)) <= _MAX_NORM  # which NaN is not
        if is_sound:
            summand = tl.load(place, mask=inside, other=0.0).to(tl.float32)
            tl.store(place, (summand + change).to(hidden.dtype.element_ty), mask=inside)
        else:
            lost = tl.full((BLOCK,), float("nan"), tl.float32)
            tl.store(place, lost.to(hidden.dtype.element_ty), mask=inside)
            tl.store(step.is_lost + token, tl.full((), 1, tl.int8))


@triton.jit
def settle(step: tl.tuple, programs: tl.tuple, kept_to: tl.tensor) -> None:
    """Count what was done at a token, if it stays."""
    token = tl.program_id(0).to(tl.int64)
    program = tl.load(step.program + token)
    if program < 0:
        return
    position = tl.load(step.position + token)
    counted_to = tl.load(programs.headers + program * 4 + _COUNTED_TO)
    if (position < tl.load(kept_to + program)) & (position >= counted_to):
        number = tl.arange(0, _EDITS)
        items = step.items + (token * _EDITS + number) * 2
        act, dose = tl.load(items), tl.load(items + 1)
        was_made = act == act
        is_generated = position >= tl.load(programs.headers + program * 4 + _PROMPT_LEN)
        sums, peaks = programs.sums + (program * _EDITS + number) * 4, programs.peaks + (program * _EDITS + number) * 2
        tl.atomic_add(
            sums + is_generated.to(tl.int32), tl.full((_EDITS,), 1.0, tl.float64), mask=was_made, sem="relaxed"
        )
        tl.atomic_add(sums + 2, act.to(tl.float64), mask=was_made, sem="relaxed")
        tl.atomic_add(sums + 3, dose.to(tl.float64), mask=was_made, sem="relaxed")
        tl.atomic_max(peaks, act, mask=was_made, sem="relaxed")
        tl.atomic_max(peaks + 1, dose, mask=was_made, sem="relaxed")
        rule = tl.arange(0, _RULES)
        held = (tl.load(step.verdicts + token) >> rule) & 1
        ones = tl.full((_RULES,), 1, tl.int32)
        tl.atomic_add(programs.num_held + program * _RULES + rule, ones, mask=held != 0, sem="relaxed")


@triton.jit
def settle_programs(programs: tl.tuple, kept_to: tl.tensor) -> None:
    """Take back what rules of a program found at rejected drafts."""
    program = tl.program_id(0).to(tl.int64)
    end = tl.load(kept_to + program).to(tl.int32)
    rule = tl.arange(0, _RULES)
    held = tl.load(programs.first_held + program * _RULES + rule)
    tl.store(programs.first_held + program * _RULES + rule, tl.where(held >= end, _FOREVER, held))
    reached = programs.headers + program * 4 + _REACHED
    tl.store(reached, tl.minimum(tl.load(reached), end))


@triton.jit
def _site_vector(
    hidden: tl.tensor,
    residual: tl.tensor,
    token: tl.tensor,
    hidden_stride: tl.tensor,
    residual_stride: tl.tensor,
    norm_eps: tl.tensor,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    WHOLE_STREAM: tl.constexpr,
    HAS_NORM: tl.constexpr,
) -> tl.tensor:
    column = tl.arange(0, BLOCK)
    x = tl.load(hidden + token * hidden_stride + column, mask=column < D, other=0.0).to(tl.float32)
    if WHOLE_STREAM:
        if residual is not None:
            x += tl.load(residual + token * residual_stride + column, mask=column < D, other=0.0).to(tl.float32)
    elif HAS_NORM:
        x = x * tl.rsqrt(tl.sum(x * x) / D + norm_eps)
    return x


@triton.jit
def _in_scope(ints: tl.tensor, programs: tl.tuple, position: tl.tensor, is_sink: tl.tensor) -> tl.tensor:
    first, last, flags = tl.load(ints + _FIRST), tl.load(ints + _LAST), tl.load(ints + _FLAGS)
    inside = (position >= first) & (position < last)
    if flags & _MANY != 0:
        low, high = first, last
        for _ in range(_SEARCHES):
            middle = (low + high) // 2
            begins_before = low < high
            if begins_before:
                begins_before = tl.load(programs.ranges + middle * 2) <= position
            if low < high:
                low = tl.where(begins_before, middle + 1, low)
                high = tl.where(begins_before, high, middle)
        # the last range that begins at the position or before it, if there is one
        inside = low > first
        if inside:
            inside = position < tl.load(programs.ranges + (low - 1) * 2 + 1)
    return inside & ((is_sink == 0) | (flags & _SPECIAL != 0))


@triton.jit
def _activation(
    x: tl.tensor, table: tl.tuple, row: tl.tensor, D: tl.constexpr, BLOCK: tl.constexpr, ROW: tl.constexpr
) -> tl.tuple:
    """Return a feature's activation, and the token's own scale."""
    column = tl.arange(0, BLOCK)
    inside = column < D
    encoder_row = tl.multiple_of(tl.load(table.rows + row * 2).to(tl.pointer_type(ROW)), 16)
    encoder = tl.load(encoder_row + column, mask=inside, other=0.0).to(tl.float32)
    floats, flags = table.floats + row * 8, tl.load(table.ints + row * 8 + _FLAGS)
    centered = x
    if flags & _CENTERED != 0:
        centered = tl.where(inside, x - tl.sum(x) / D, 0.0)
    scale, factor = 1.0, 1.0
    if flags & _BY_STD != 0:
        off = tl.where(inside, centered - tl.sum(centered) / D, 0.0)
        scale = tl.sqrt(tl.sum(off * off) / (D - 1))
        factor = 1.0 / (scale + tl.load(floats + _NORM_EPS))
    if flags & _BY_LENGTH != 0:
        scale = tl.sqrt(tl.sum(centered * centered) / D)
        factor = 1.0 / tl.maximum(scale, _TINY)
    pre = tl.sum(centered * encoder) * factor + tl.load(floats + _BIAS)
    return tl.where(pre > tl.load(floats + _THRESHOLD), pre, 0.0), scale


@triton.jit
def _is_met(ints: tl.tensor, programs: tl.tuple, acts: tl.tensor) -> tl.tensor:
    """Run a rule's condition, on a stack that is the bits of a number."""
    stack = tl.full((), 0, tl.int64)
    for at in range(tl.load(ints + _BEGIN), tl.load(ints + _END)):
        operation, operand = tl.load(programs.code + at * 2), tl.load(programs.code + at * 2 + 1)
        if operation == _COMPARE:
            act, bound = tl.load(acts + operand), tl.load(programs.bounds + at * 2)
            # an activation that was not read, NaN, is neither above nor below
            is_above = tl.load(programs.bounds + at * 2 + 1) > 0
            compared = (is_above & (act > bound)) | ((is_above == 0) & (act < bound))
            stack = (stack << 1) | compared.to(tl.int64)
        elif operation == _NOT:
            stack = stack ^ 1
        else:
            num_parts = operand.to(tl.int64)
            mask = (tl.full((), 1, tl.int64) << num_parts) - 1
            parts = stack & mask
            joined = tl.where(operation == _ALL, parts == mask, parts != 0)
            stack = ((stack >> num_parts) << 1) | joined.to(tl.int64)
    return stack & 1 != 0


@triton.jit
def _is_allowed(
    ints: tl.tensor, programs: tl.tuple, program: tl.tensor, position: tl.tensor, verdicts: tl.tensor
) -> tl.tensor:
    rule = tl.load(ints + _RULE)
    is_allowed = rule < 0
    if rule >= 0:
        is_allowed = (verdicts >> rule) & 1 != 0
        if tl.load(ints + _FLAGS) & _LASTING != 0:
            is_allowed = is_allowed | (position >= tl.load(programs.first_held + program * _RULES + rule))
    return is_allowed


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
    test = tl.arange(0, _TESTS)
    for row in range(first, last):
        ints = conditions.ints + row * 8
        number = tl.load(ints + _NUMBER)
        slot = program * _RULES + number
        if ((verdicts >> number) & 1 != 0) & (position == tl.load(programs.first_held + slot)):
            acts = tl.load(step.acts + token * ACTS + tl.load(ints + _COLUMN) + test)
            tl.store(programs.first_acts + slot * _TESTS + test, acts)


@triton.jit
def _moved(floats: tl.tensor, act: tl.tensor) -> tl.tensor:
    offset, gain, low, high = tl.load(floats), tl.load(floats + 1), tl.load(floats + 2), tl.load(floats + 3)
    return tl.minimum(tl.maximum(offset + gain * act, low - act), high - act)


@triton.jit
def _count(
    programs: tl.tuple, program: tl.tensor, number: tl.tensor, position: tl.tensor, act: tl.tensor, dose: tl.tensor
) -> None:
    # relaxed: they are read after the kernel, and order nothing within it
    slot = program * _EDITS + number
    is_generated = (position >= tl.load(programs.headers + program * 4 + _PROMPT_LEN)).to(tl.int32)
    sums, peaks = programs.sums + slot * 4, programs.peaks + slot * 2
    tl.atomic_add(sums + is_generated, tl.full((), 1.0, tl.float64), sem="relaxed")
    tl.atomic_add(sums + 2, act.to(tl.float64), sem="relaxed")
    tl.atomic_add(sums + 3, dose.to(tl.float64), sem="relaxed")
    tl.atomic_max(peaks, act, sem="relaxed")
    tl.atomic_max(peaks + 1, dose, sem="relaxed")
