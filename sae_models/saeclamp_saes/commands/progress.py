"""The bar that long commands show."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saeclamp_saes.training.progress import Report


@contextmanager
def progress_bar() -> Iterator[Report]:
    """Show what is being done on stderr: a bar on a terminal, else nothing."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        tasks: dict[str, Any] = {}

        def report(doing: str, done: int, total: int, figures: Mapping[str, float]) -> None:
            if doing not in tasks:
                tasks[doing] = bar.add_task(doing, total=total, figures="")
            bar.update(tasks[doing], completed=done, total=total, figures=_said(figures))

        yield report


def _said(figures: Mapping[str, float]) -> str:
    if not figures:
        return ""
    return (
        f"explained {figures['explained_variance']:.3f}  L0 {figures['l0']:.1f}  dead {figures['dead']:.1%}  "
        f"{figures['tokens_per_second']:,.0f} tokens/s"
    )
