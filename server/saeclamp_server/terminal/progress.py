"""A bar for what takes longer on the server, on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from saeclamp_saes.commands.progress import progress_bar
from saeclamp_server.visible import visible_line

if TYPE_CHECKING:
    from saeclamp import Progress


@contextmanager
def progress_shown() -> Iterator[Callable[[Progress], None]]:
    """Show how far an answer is, a bar for each thing that is done for it; on a terminal, else nothing."""
    with progress_bar() as report:
        yield lambda progress: report(visible_line(progress.what), progress.done, progress.of, {})
