"""Token ranges: positions of a request, with bounds that may depend on the prompt's length."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations_with_replacement, product
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

PROMPT_END = "prompt_end"
"""The position of the first generated token, wherever that is; `prompt_end+2` is two behind it, `prompt_end-1` before."""
NO_END = 2**62
"""Position beyond all others. Fits into int64 with room to add to it."""

MAX_RANGES = 2048
"""Separate ranges of positions in the scopes of a request, at most; equal scopes count once."""

Bound: TypeAlias = int | str | None
Range: TypeAlias = tuple[Bound, Bound]
"""(from, included; to, excluded), as absolute positions of the request. None is without end."""
TokenRanges: TypeAlias = tuple[Range, ...]
"""
Ranges, first those that are the same for every prompt, which ascend and neither overlap nor touch, then those that depend on
its length. JSON-able; equal for equal choices of tokens.
"""

ALL: TokenRanges = ((0, None),)
PROMPT: TokenRanges = ((0, PROMPT_END),)
GENERATED: TokenRanges = ((PROMPT_END, None),)


def from_prompt_end(offset: int) -> str:
    """Make a bound of a number of positions behind the end of the prompt; before it for a negative one."""
    return f"{PROMPT_END}{offset:+d}" if offset else PROMPT_END


def from_positions(positions: Iterable[int]) -> TokenRanges:
    """Make ranges of single positions, with neighbours in one range; negative ones are before the end of the prompt."""
    chosen = set(positions)
    before_end = [
        (from_prompt_end(start), from_prompt_end(end)) for start, end in _runs(one for one in chosen if one < 0)
    ]
    return (*_runs(one for one in chosen if one >= 0), *before_end)


def _runs(positions: Iterable[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for position in sorted(positions):
        if runs and runs[-1][1] == position:
            runs[-1] = (runs[-1][0], position + 1)
        else:
            runs.append((position, position + 1))
    return runs


def resolve_ranges(scope: Sequence[Sequence[Bound]], prompt_len: int) -> list[tuple[int, int]]:
    """Return the ranges as numbers, for a prompt of that length: ascending and apart, without those that are empty then."""
    resolved: list[tuple[int, int]] = []
    for start, end in sorted((_number(start, prompt_len), _number(end, prompt_len)) for start, end in scope):
        if start >= end:
            continue
        # what counts from the end of the prompt may meet what counts from its beginning
        if resolved and start <= resolved[-1][1]:
            resolved[-1] = (resolved[-1][0], max(resolved[-1][1], end))
        else:
            resolved.append((start, end))
    return resolved


def _number(bound: Bound, prompt_len: int) -> int:
    if bound is None:
        return NO_END
    fixed, share = _parts(bound)
    return max(0, fixed + share * prompt_len)


def _parts(bound: int | str) -> tuple[int, int]:
    """Take a bound apart: it is the first number, and as many lengths of the prompt as the second says."""
    if isinstance(bound, int):
        return bound, 0
    return int(bound.removeprefix(PROMPT_END) or 0), 1


def can_overlap(one: TokenRanges, other: TokenRanges, prompt_len: int | None = None) -> bool:
    """Tell whether two token ranges have a position in common, for a prompt of that length; None: of any length."""
    if prompt_len is not None:
        return _overlap(resolve_ranges(one, prompt_len), resolve_ranges(other, prompt_len))
    fixed, waiting = _apart(one)
    other_fixed, other_waiting = _apart(other)
    # any length does, as these do not depend on it
    if _overlap(resolve_ranges(fixed, 1), resolve_ranges(other_fixed, 1)):
        return True
    pairs = [*product(waiting, other), *product(other_waiting, fixed)]
    return any(_overlap_for_some_length(*pair) for pair in pairs)


def overlap_matrix(scopes: Sequence[TokenRanges], prompt_len: int | None = None) -> NDArray[np.bool_]:
    """Tell for each two token ranges whether they can overlap: (num_scopes, num_scopes) bool. Equal ones are tried once."""
    numbers = {scope: number for number, scope in enumerate(dict.fromkeys(scopes))}
    distinct = [*numbers]
    meet = np.zeros((len(distinct), len(distinct)), np.bool_)
    for one, other in combinations_with_replacement(range(len(distinct)), 2):
        meet[one, other] = meet[other, one] = can_overlap(distinct[one], distinct[other], prompt_len)
    of = np.array([numbers[scope] for scope in scopes], np.int64)
    return meet[np.ix_(of, of)]


def _overlap(one: Sequence[tuple[int, int]], other: Sequence[tuple[int, int]]) -> bool:
    """
    Tell whether two lists of ranges have a position in common.

    Both are walked in order: of two ranges that do not meet, the one that ends first meets nothing that follows the other.
    """
    mine, others = iter(sorted(one)), iter(sorted(other))
    a, b = next(mine, None), next(others, None)
    while a is not None and b is not None:
        if a[0] < b[1] and b[0] < a[1]:
            return True
        if a[1] <= b[1]:
            a = next(mine, None)
        else:
            b = next(others, None)
    return False


def _apart(scope: TokenRanges) -> tuple[TokenRanges, TokenRanges]:
    """Split token ranges into those that are the same for every prompt, and the few that depend on its length."""
    waiting = tuple(bounds for bounds in scope if any(isinstance(bound, str) for bound in bounds))
    return tuple(bounds for bounds in scope if bounds not in waiting), waiting


def _overlap_for_some_length(one: Range, other: Range) -> bool:
    """
    Tell whether there is a length of the prompt, 1 or more, for which two ranges have a position in common.

    They have if each start is before each end, and so is position 0; every such pair bounds the length from below or above.
    """
    least, most = 1, NO_END
    for start, end in product((one[0], other[0], 0), (one[1], other[1])):
        if end is None:
            continue
        (fixed, share), (end_fixed, end_share) = _parts(start or 0), _parts(end)
        # the difference of both must be 1 at least
        if share == end_share:
            if fixed >= end_fixed:
                return False
        elif share:
            most = min(most, end_fixed - fixed - 1)
        else:
            least = max(least, fixed - end_fixed + 1)
    return least <= most
