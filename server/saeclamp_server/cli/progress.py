"""A bar for what takes longer on the server, on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from saeclamp_saes.io.sanitize import escape_to_one_line
from saeclamp_server.cli.tables import Repainted, cell_width, terminal_width

if TYPE_CHECKING:
    from saeclamp import Progress

WIDEST = 40
"""Characters of a bar."""


@contextmanager
def progress_shown() -> Iterator[Callable[[Progress], None]]:
    """Show how far an answer is, a bar for each thing that is done for it; on a terminal, else nothing."""
    if not sys.stderr.isatty():
        yield lambda progress: None
        return
    screen = Repainted(sys.stderr)
    bars: dict[str, tuple[int, int]] = {}

    def show(progress: Progress) -> None:
        bars[escape_to_one_line(progress.what)] = progress.done, progress.of
        screen.paint([bar(what, done, of, terminal_width()) for what, (done, of) in bars.items()])

    try:
        yield show
    finally:
        screen.paint([], is_final=True)


def bar(what: str, done: int, of: int, width: int) -> str:
    """Draw one bar, in a line of at most `width` characters."""
    counted = f" {done}/{of}"
    room = width - cell_width(what) - len(counted) - 1
    if room < 1:
        return f"{what}{counted}"[:width]
    room = min(room, WIDEST)
    full = room if of <= 0 else min(room, room * done // of)
    return f"{what} {'━' * full}{'╌' * (room - full)}{counted}"
