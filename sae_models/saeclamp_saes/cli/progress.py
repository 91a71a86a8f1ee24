"""Helpers of long commands: the progress bar, and ending in a sentence when they are stopped."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saeclamp_saes.progress import ProgressCallback


@contextmanager
def progress_bar() -> Iterator[ProgressCallback]:
    """Show the progress on stderr: a bar on a terminal, else nothing."""
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


def exit_resumable(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Make a command end in a sentence, with exit code 130, when Ctrl-C is pressed."""

    @wraps(run)
    def stoppable(args: argparse.Namespace) -> int:
        try:
            return run(args)
        except KeyboardInterrupt:
            print("saeclamp: stopped; the same command goes on with it.", file=sys.stderr)
            return 130

    return stoppable
