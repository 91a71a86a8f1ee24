"""How a run tells what it is doing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

ProgressCallback = Callable[[str, int, int, Mapping[str, float]], None]
"""Gets what is being done, how much is done, of how much, and figures by name."""


def no_progress(doing: str, done: int, total: int, figures: Mapping[str, float]) -> None:
    """Tell nothing."""
