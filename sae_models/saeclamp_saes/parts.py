"""Work on tensors in parts, so that no temporary tensor is large."""

from __future__ import annotations

PART_BYTES = 64 << 20
"""
Bytes of one temporary tensor: rows gathered for pairs, activations of all features. Larger work is done in parts, because
an engine's memory is planned without it, and a long prompt with many features would end the engine for all.
"""


def parts_of(num: int, item_bytes: int, part_bytes: int = PART_BYTES) -> list[slice]:
    """
    Cut `num` items into runs that take at most `part_bytes` each; one item alone may take more.

    returns: at least one, so that what is joined from the parts has its shape where there is nothing
    """
    step = max(1, part_bytes // max(1, item_bytes))
    return [slice(first, min(first + step, num)) for first in range(0, num, step)] or [slice(0, 0)]
