"""
Worker process: parts of the kernels, each for one token: its vector, scopes, activations, rules, and what is counted.

The layout's numbers are here once more as constants of Triton: a kernel sees no other global names.
"""

from __future__ import annotations

import triton
import triton.language as tl

from saeclamp_server.engine.worker import program_layout as layout

EDITS, RULES, TESTS = tl.constexpr(layout.EDITS), tl.constexpr(layout.RULES), tl.constexpr(layout.TESTS)
SUMS = tl.constexpr(layout.SUMS)
ACT_SUM, DOSE_SUM = tl.constexpr(layout.ACT_SUM), tl.constexpr(layout.DOSE_SUM)
SINKS = tl.constexpr(layout.PROMPT_SINKS)
LEFT_OUT = tl.constexpr(layout.LEFT_OUT)
FOREVER = tl.constexpr(layout.FOREVER)
FIRST, LAST = tl.constexpr(layout.FIRST), tl.constexpr(layout.LAST)
FLAGS, NUMBER = tl.constexpr(layout.FLAGS), tl.constexpr(layout.NUMBER)
RULE, WRITE = tl.constexpr(layout.RULE), tl.constexpr(layout.WRITE)
SOURCE, KIND = tl.constexpr(layout.SOURCE), tl.constexpr(layout.KIND)
WINDOW, SLOT = tl.constexpr(layout.WINDOW), tl.constexpr(layout.SLOT)
AGGREGATED, AGGREGATES = tl.constexpr(layout.AGGREGATED), tl.constexpr(layout.AGGREGATES)
MAX, RECENT = tl.constexpr(int(layout.Aggregate.MAX)), tl.constexpr(layout.RECENT)
BEGIN, END = tl.constexpr(layout.BEGIN), tl.constexpr(layout.END)
COLUMN = tl.constexpr(layout.COLUMN)
MANY, SPECIAL, LASTING = tl.constexpr(layout.MANY), tl.constexpr(layout.SPECIAL), tl.constexpr(layout.LASTING)
CARRIED, CENTERED = tl.constexpr(layout.CARRIED), tl.constexpr(layout.CENTERED)
NARROW = tl.constexpr(layout.NARROW)
BY_STD, BY_LENGTH = tl.constexpr(layout.BY_STD), tl.constexpr(layout.BY_LENGTH)
BIAS, THRESHOLD = tl.constexpr(layout.BIAS), tl.constexpr(layout.THRESHOLD)
ROW_NORM, NORM_EPS = tl.constexpr(layout.ROW_NORM), tl.constexpr(layout.NORM_EPS)
PROMPT_LEN, COUNTED_TO = tl.constexpr(layout.PROMPT_LEN), tl.constexpr(layout.COUNTED_TO)
REACHED = tl.constexpr(layout.REACHED)
COMPARE, ALL, NOT = (
    tl.constexpr(int(op)) for op in (layout.Operation.COMPARE, layout.Operation.ALL, layout.Operation.NOT)
)
SEARCHES = tl.constexpr(layout.RANGES.bit_length())
MAX_NORM = tl.constexpr(layout.MAX_NORM)
TINY = tl.constexpr(1.1754943508222875e-38)


@triton.jit
def site_vector(
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
def in_scope(ints: tl.tensor, programs: tl.tuple, position: tl.tensor, is_sink: tl.tensor) -> tl.tensor:
    first, last, flags = tl.load(ints + FIRST), tl.load(ints + LAST), tl.load(ints + FLAGS)
    inside = (position >= first) & (position < last)
    if flags & MANY != 0:
        low, high = first, last
        for _ in range(SEARCHES):
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
    return inside & ((is_sink == 0) | (flags & SPECIAL != 0))


@triton.jit
def _row_at(address: tl.tensor, mask: tl.tensor, D: tl.constexpr, BLOCK: tl.constexpr, TYPE: tl.constexpr) -> tl.tensor:
    row = address.to(tl.pointer_type(TYPE))
    # a row has D elements, or several times as many for several sites
    if D % 8 == 0:
        row = tl.multiple_of(row, 16)
    return tl.load(row + tl.arange(0, BLOCK), mask=mask, other=0.0).to(tl.float32)


@triton.jit
def encoder_row(rows: tl.tensor, flags: tl.tensor, D: tl.constexpr, BLOCK: tl.constexpr) -> tl.tensor:
    """
    Load a feature's encoder row.

    rows: addresses of its encoder and decoder rows
    """
    inside, address = tl.arange(0, BLOCK) < D, tl.load(rows)
    if flags & NARROW != 0:
        encoder = _row_at(address, inside, D, BLOCK, tl.bfloat16)
    else:
        encoder = _row_at(address, inside, D, BLOCK, tl.float32)
    return encoder


@triton.jit
def both_rows(rows: tl.tensor, flags: tl.tensor, D: tl.constexpr, BLOCK: tl.constexpr) -> tl.tuple:
    """Load a feature's encoder row, unless its activation is carried, and its decoder row: both are on their way at once."""
    inside = tl.arange(0, BLOCK) < D
    is_read = tl.where(flags & CARRIED == 0, inside, False)
    encoder_address, decoder_address = tl.load(rows), tl.load(rows + 1)
    # one branch for both: behind one of its own the second would not be asked for before the first has come
    if flags & NARROW != 0:
        encoder = _row_at(encoder_address, is_read, D, BLOCK, tl.bfloat16)
        decoder = _row_at(decoder_address, inside, D, BLOCK, tl.bfloat16)
    else:
        encoder = _row_at(encoder_address, is_read, D, BLOCK, tl.float32)
        decoder = _row_at(decoder_address, inside, D, BLOCK, tl.float32)
    return encoder, decoder


@triton.jit
def activation(
    x: tl.tensor, encoder: tl.tensor, floats: tl.tensor, flags: tl.tensor, D: tl.constexpr, BLOCK: tl.constexpr
) -> tl.tuple:
    """Return a feature's activation, and the token's own scale."""
    inside = tl.arange(0, BLOCK) < D
    centered = x
    if flags & CENTERED != 0:
        centered = tl.where(inside, x - tl.sum(x) / D, 0.0)
    scale, factor = 1.0, 1.0
    if flags & BY_STD != 0:
        off = tl.where(inside, centered - tl.sum(centered) / D, 0.0)
        scale = tl.sqrt(tl.sum(off * off) / (D - 1))
        factor = 1.0 / (scale + tl.load(floats + NORM_EPS))
    if flags & BY_LENGTH != 0:
        scale = tl.sqrt(tl.sum(centered * centered) / D)
        factor = 1.0 / tl.maximum(scale, TINY)
    pre = tl.sum(centered * encoder) * factor + tl.load(floats + BIAS)
    return tl.where(pre > tl.load(floats + THRESHOLD), pre, 0.0), scale


@triton.jit
def is_met(ints: tl.tensor, programs: tl.tuple, acts: tl.tensor) -> tl.tuple:
    """
    Run a rule's condition, on a stack that is the bits of a number; and tell whether all its activations were read.

    At a sink they were not, and no condition holds there, not even a negated one.
    """
    stack = tl.full((), 0, tl.int64)
    is_judged = tl.full((), True, tl.int1)
    for at in range(tl.load(ints + BEGIN), tl.load(ints + END)):
        operation, operand = tl.load(programs.code + at * 2), tl.load(programs.code + at * 2 + 1)
        if operation == COMPARE:
            act, bound = tl.load(acts + operand), tl.load(programs.bounds + at * 2)
            is_judged = is_judged & (act == act)
            is_above = tl.load(programs.bounds + at * 2 + 1) > 0
            compared = (is_above & (act > bound)) | ((is_above == 0) & (act < bound))
            stack = (stack << 1) | compared.to(tl.int64)
        elif operation == NOT:
            stack = stack ^ 1
        else:
            num_parts = operand.to(tl.int64)
            mask = (tl.full((), 1, tl.int64) << num_parts) - 1
            parts = stack & mask
            joined = tl.where(operation == ALL, parts == mask, parts != 0)
            stack = ((stack >> num_parts) << 1) | joined.to(tl.int64)
    return (stack & 1 != 0) & is_judged, is_judged


@triton.jit
def aggregate(
    ints: tl.tensor, programs: tl.tuple, step: tl.tuple, program: tl.tensor, token: tl.tensor, ACTS: tl.constexpr
) -> tl.tuple:
    """
    Take a token's activation into an aggregate, if its rule looks at the token.

    returns: total, number of activations, and what is compared at the token: NaN where it is not looked at
    """
    slot = program * AGGREGATES + tl.load(ints + SLOT)
    total, num = tl.load(programs.totals + slot * 2), tl.load(programs.totals + slot * 2 + 1)
    act = tl.load(step.acts + token * ACTS + tl.load(ints + SOURCE))
    value = tl.full((), float("nan"), tl.float32)
    # NaN where it was not read: outside the rule's scope, and at sinks
    if act == act:
        place, window = num.to(tl.int32) % RECENT, tl.load(ints + WINDOW)
        tl.store(programs.recent + slot * RECENT + place, act)
        num += 1.0
        if tl.load(ints + KIND) == MAX:
            total = tl.where(num > 1.0, tl.maximum(total, act.to(tl.float64)), act.to(tl.float64))
            value = total.to(tl.float32)
        else:
            total += act.to(tl.float64)
            value = (total / num).to(tl.float32)
        if window > 0:
            tl.debug_barrier()
            age = (place - tl.arange(0, RECENT) + RECENT) % RECENT
            is_in = (age < window) & (age < num)
            last = tl.load(programs.recent + slot * RECENT + tl.arange(0, RECENT), mask=is_in, other=0.0)
            value = (tl.sum(last.to(tl.float64)) / tl.minimum(num, window.to(tl.float64))).to(tl.float32)
    return total, num, value


@triton.jit
def is_allowed(
    ints: tl.tensor, programs: tl.tuple, program: tl.tensor, position: tl.tensor, verdicts: tl.tensor
) -> tl.tensor:
    rule = tl.load(ints + RULE)
    is_allowed = rule < 0
    if rule >= 0:
        is_allowed = (verdicts >> rule) & 1 != 0
        if tl.load(ints + FLAGS) & LASTING != 0:
            is_allowed = is_allowed | (position >= tl.load(programs.first_held + program * RULES + rule))
    return is_allowed


@triton.jit
def moved(floats: tl.tensor, act: tl.tensor) -> tl.tensor:
    offset, gain, low, high = tl.load(floats), tl.load(floats + 1), tl.load(floats + 2), tl.load(floats + 3)
    return tl.minimum(tl.maximum(offset + gain * act, low - act), high - act)


@triton.jit
def count(
    programs: tl.tuple, program: tl.tensor, number: tl.tensor, position: tl.tensor, act: tl.tensor, dose: tl.tensor
) -> None:
    # relaxed: they are read after the kernel, and order nothing within it
    slot = program * EDITS + number
    is_generated = (position >= tl.load(programs.headers + program * 4 + PROMPT_LEN)).to(tl.int32)
    sums, peaks = programs.sums + slot * SUMS, programs.peaks + slot * 2
    tl.atomic_add(sums + is_generated, tl.full((), 1.0, tl.float64), sem="relaxed")
    tl.atomic_add(sums + ACT_SUM, act.to(tl.float64), sem="relaxed")
    tl.atomic_add(sums + DOSE_SUM, dose.to(tl.float64), sem="relaxed")
    tl.atomic_max(peaks, act, sem="relaxed")
    tl.atomic_max(peaks + 1, dose, sem="relaxed")


@triton.jit
def count_left_out(programs: tl.tuple, program: tl.tensor, number: tl.tensor, position: tl.tensor) -> None:
    is_generated = (position >= tl.load(programs.headers + program * 4 + PROMPT_LEN)).to(tl.int32)
    sums = programs.sums + (program * EDITS + number) * SUMS
    tl.atomic_add(sums + SINKS + is_generated, tl.full((), 1.0, tl.float64), sem="relaxed")
