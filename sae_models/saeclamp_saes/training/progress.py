"""How a run tells what it is doing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from saeclamp_saes.training.harvest import Part

Report = Callable[[str, int, int, Mapping[str, float]], None]
"""Gets what is being done, how much is done, of how much, and figures by name."""
Read = Callable[[Sequence["Part"]], None]
"""Gets the sequences of a model's forward, when that is done."""


def silent(doing: str, done: int, total: int, figures: Mapping[str, float]) -> None:
    """Tell nothing."""


def unheard(parts: Sequence[Part]) -> None:
    """Tell nothing of a forward."""


def forwards(report: Report, doing: str, done: int, total: int, size: Callable[[Part], int]) -> Read:
    """
    Make what reports each forward, because a group of them takes minutes on a slow machine.

    done: before the first; what a forward reads beyond `total`, or again, is not told
    size: what a sequence adds, in the unit of `done` and `total`
    """
    so_far = done

    def read(parts: Sequence[Part]) -> None:
        nonlocal so_far
        so_far += sum(map(size, parts))
        report(doing, max(0, min(so_far, total)), total, {})

    return read
