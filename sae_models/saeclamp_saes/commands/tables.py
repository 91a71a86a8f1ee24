"""Tables: drawn on a terminal, tab-separated where another program reads them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

LONG = 24
"""Characters of a cell beyond which its column is wrapped."""


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under a header."""
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            print("\t".join(row))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = [*rows]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        # what is copied or compared, names and numbers, stays in one piece; sentences are wrapped
        is_long = any(len(row[number]) > LONG for row in rows)
        table.add_column(column, no_wrap=not is_long, overflow="fold", min_width=len(column) if not is_long else 12)
    for row in rows:
        table.add_row(*(Text(cell, overflow="fold") for cell in row))  # as text: a name may hold rich's markup
    Console().print(table)


def print_facts(facts: Mapping[str, str]) -> None:
    """Print one fact a line, its name first."""
    if not sys.stdout.isatty():
        for name, value in facts.items():
            print(f"{name}\t{value}")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        table.add_row(Text(name, style="dim"), Text(value, overflow="fold"))
    Console().print(table)


def print_json(value: Any) -> None:
    """Print an object or list for another program."""
    print(json.dumps(value, indent=1))
