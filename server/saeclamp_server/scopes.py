"""Which positions of a request an edit touches: ranges whose bounds may wait for the prompt's length."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias

PROMPT_END: Literal["prompt_end"] = "prompt_end"
"""The position of the first generated token, wherever that will be."""
FOREVER = 2**62
"""Beyond every position."""

Bound: TypeAlias = int | Literal["prompt_end"] | None
Range: TypeAlias = tuple[Bound, Bound]
"""From (included) and to (excluded), as absolute positions of the request. None is without end."""
Scope: TypeAlias = tuple[Range, ...]
"""Ascending and apart. JSON-able; equal for equal positions."""

ALL: Scope = ((0, None),)
PROMPT: Scope = ((0, PROMPT_END),)
GENERATED: Scope = ((PROMPT_END, None),)


def of_positions(positions: Iterable[int]) -> Scope:
    """Single positions, in runs."""
    runs: list[tuple[int, int]] = []
    for position in sorted(set(positions)):
        if runs and runs[-1][1] == position:
            runs[-1] = (runs[-1][0], position + 1)
        else:
            runs.append((position, position + 1))
    return tuple(runs)


def resolved(scope: Sequence[Sequence[Bound]], prompt_len: int) -> list[tuple[int, int]]:
    """The same ranges as numbers, for a prompt of that length; without those that are empty then."""
    ranges = [(_number(start, prompt_len), _number(end, prompt_len)) for start, end in scope]
    return [(start, end) for start, end in ranges if start < end]


def _number(bound: Bound, prompt_len: int) -> int:
    if bound is None:
        return FOREVER
    return prompt_len if bound == PROMPT_END else int(bound)


def can_meet(one: Scope, other: Scope, prompt_len: int | None = None) -> bool:
    """Whether two scopes have a position in common, for a prompt of that length; for None, of any."""
    lengths = _lengths_that_matter(one, other) if prompt_len is None else [prompt_len]
    return any(_meet(resolved(one, length), resolved(other, length)) for length in lengths)


def _lengths_that_matter(*scopes: Scope) -> list[int]:
    """Between two neighbouring bounds, the prompt's length makes no difference."""
    bounds = {bound for scope in scopes for start_end in scope for bound in start_end if isinstance(bound, int)}
    return sorted({1, *(length for bound in bounds for length in (bound, bound + 1) if length >= 1)})


def _meet(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> bool:
    return any(start < last and first < end for start, end in one for first, last in other)
