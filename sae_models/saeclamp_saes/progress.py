"""The callback by which a run reports its progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping

ProgressCallback = Callable[[str, int, int, Mapping[str, float]], None]
"""Takes the name of the work, how much of it is done, of how much, and metrics by name."""


def no_progress(doing: str, done: int, total: int, figures: Mapping[str, float]) -> None:
    """Report nothing."""
