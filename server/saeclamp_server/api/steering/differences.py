"""
Differences of two answers, by the longest common subsequence of their tokens, bit by bit in whole integers.

Work and memory are bounded by the product of both lengths over the width of a machine word (half a megabyte at 2,048 tokens
each), whatever the tokens are; difflib's time grows with the cube of the length where tokens repeat.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from saeclamp.types import Difference


def differences(default: Sequence[int], own: Sequence[int]) -> tuple[Difference, ...]:
    """List the pieces between what both have, in order."""
    found = []
    # what is equal at both ends stays together
    before = _num_equal(default, own)
    behind = _num_equal(default[before:][::-1], own[before:][::-1])
    end, own_end = len(default) - behind, len(own) - behind
    start = first = before
    middle = _common(default[before:end], own[before:own_end])
    for at, own_at in (*((before + i, before + j) for i, j in middle), (end, own_end)):
        if at > start or own_at > first:
            op = "replace" if at > start and own_at > first else "delete" if at > start else "insert"
            found.append(Difference.model_validate({"op": op, "default": (start, at), "own": (first, own_at)}))
        start, first = at + 1, own_at + 1
    return tuple(found)


def _num_equal(one: Sequence[int], other: Sequence[int]) -> int:
    """Count the tokens of the common beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((count for count, (a, b) in pairs if a != b), min(len(one), len(other)))


def _common(one: Sequence[int], other: Sequence[int]) -> list[tuple[int, int]]:
    """
    Pair up the positions of a longest common subsequence, in order.

    Row i of the usual table, as bits: bit j is 0 where one more token of `one[: j + 1]` is matched by `other[: i + 1]` than
    of `one[:j]` (Hyyrö 2004).
    """
    places: dict[int, int] = defaultdict(int)
    for number, token in enumerate(one):
        places[token] |= 1 << number
    everything = (1 << len(one)) - 1
    rows, row = [], everything
    for token in other:
        matched = row & places.get(token, 0)
        row = ((row + matched) | (row - matched)) & everything
        rows.append(row)
    pairs = []
    i, j = len(other), len(one)
    while i and j:
        if rows[i - 1] >> (j - 1) & 1:  # without one[j - 1] as many are matched
            j -= 1
        elif i > 1 and not rows[i - 2] >> (j - 1) & 1:  # and without other[i - 1]
            i -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((j, i))
    return pairs[::-1]
