"""
Worker process: the layout of the program tables: capacities of a program, columns of a row, flags, and operations of
conditions. Imports nothing of torch or vLLM; the compiler, both executors and their tests go by it.
"""

from __future__ import annotations

from enum import IntEnum

from saeclamp.types import MAX_AGGREGATES, MAX_INTERVENTIONS, MAX_READ, MAX_RULES, MAX_TESTS, MAX_WINDOW
from saeclamp_server.steering.token_ranges import MAX_RANGES

FOREVER = 2**31 - 1
"""Position beyond all others."""

MAX_NORM = 1e12
"""
Norm of an edited vector beyond which its request fails. No model's vectors come near it, and later layers stay finite with
it: they square it, in a gated MLP and in a norm's sum, and fp32 and bf16 hold numbers up to 3e38.
"""

EDITS = MAX_INTERVENTIONS
"""Edits of a program, at most; and so are those that follow."""
RULES = MAX_RULES
TESTS = MAX_TESTS
AGGREGATES = MAX_AGGREGATES
"""Comparisons of a program, at most, that look at several tokens."""
READS = MAX_READ + MAX_RULES * MAX_TESTS + AGGREGATES
"""Columns of activations: those that are read by name, and what is aggregated of some of them."""
RECENT = 2 * MAX_WINDOW
"""Activations that are kept for a window: as many again as it is long, because drafts that are rejected overwrite some."""
INSTRUCTIONS = MAX_RULES * 4 * MAX_TESTS
"""At most n - 1 joins of n comparisons, and a negation of each of these 2n - 1: fewer than 4n instructions a rule."""
RANGES = MAX_RANGES

FIRST, LAST, FLAGS, NUMBER = range(4)
"""
Columns of every row. First position and the one behind the last; with MANY, the same of a run of ranges. Number of the edit
or rule in its program, or the column in which an activation is kept.
"""
RULE, WEIGHTS, FEATURE, WRITE = range(4, 8)
"""Columns of edits and reads. RULE is -1 without one; WEIGHTS numbers SAEs and banks, WRITE the sites that one writes to."""
BEGIN, END, COLUMN, COMPARISONS = range(4, 8)
"""Columns of rules: the condition's instructions, the column of its first activation, and their number."""

SOURCE, KIND, WINDOW, SLOT = range(4, 8)
"""
Columns of aggregates: the column of the activation, `Aggregate`, the number of tokens (0: all so far), and the number among
those of the program. NUMBER is the column of the result.
"""

MANY, SPECIAL, LASTING, CARRIED = 1, 2, 4, 8
"""Flags: several ranges; special tokens and position 0 too; the rule holds on; the activation is kept for another site."""
CENTERED, BY_STD, BY_LENGTH = 16, 32, 64
"""Flags of the kernels: how the SAE normalises its input, as `sae.InputNorm` has it."""
AGGREGATED = 128
"""Flag of rules: its condition has aggregates, so its tokens are judged one after the other."""
NARROW = 256
"""Flag of the kernels: the feature's rows of the encoder and decoder are bf16, in place of fp32."""

BIAS, THRESHOLD, ROW_NORM, NORM_EPS = range(4, 8)
"""Columns of floats behind the four of an edit's `clamping.ActivationUpdate`, for the kernels: what they need of a row."""

SUMS = 6
PROMPT, GENERATED, ACT_SUM, DOSE_SUM, PROMPT_SINKS, GENERATED_SINKS = range(SUMS)
"""Columns of an edit's sums: positions that were edited, their activations and doses, positions left out as sinks."""

LEFT_OUT = 0.0
"""Dose of an item without an activation, NaN: the edit was left out, because the token is a sink."""

PROMPT_LEN, NUM_EDITS, COUNTED_TO, REACHED = range(4)
"""
Columns of a program's header. Positions below COUNTED_TO were counted in an earlier step, and are computed again after a
preemption; REACHED is behind the last position computed so far.
"""


class Operation(IntEnum):
    """Operation of an instruction. The operand is the column of an activation, or the number of joined parts."""

    COMPARE = 0
    ALL = 1
    ANY = 2
    NOT = 3


class Aggregate(IntEnum):
    """Kinds of aggregates of an activation over the tokens so far."""

    MAX = 0
    MEAN = 1
