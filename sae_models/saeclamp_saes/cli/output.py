"""Output of commands: tables, drawn on a terminal and tab-separated where another program reads them, and JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

LONG = 24
"""Characters of a cell beyond which its column may be wrapped."""
WIDEST = 1000
"""Width of a terminal, in characters, in which every table fits."""


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under a header."""
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            print("\t".join(row))
        return
    from rich.console import Console

    console = Console()
    rows = [*rows]
    table = _table(columns, rows)
    fits = console.measure(table, options=console.options.update(max_width=WIDEST)).minimum <= console.width
    console.print(table if fits else _records(columns, rows))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> RenderableType:
    from rich import box
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        # what is copied or compared, names and numbers, stays in one piece; sentences are wrapped
        widest = max(map(cell_len, (column, *(row[number] for row in rows))))
        table.add_column(column, overflow="fold", min_width=min(widest, LONG))
    for row in rows:
        table.add_row(*(Text(cell, overflow="fold") for cell in row))  # as text: a name may hold rich's markup
    return table


def _records(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> RenderableType:
    """Lay out each row as a few lines, for rows that are too wide for a table."""
    facts = []
    for row in rows:
        facts.append((columns[0], row[0]))
        facts += [(f"  {column}", cell) for column, cell in zip(columns[1:], row[1:], strict=True) if cell]
    return _grid(facts)


def _grid(facts: Iterable[tuple[str, str]]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    for name, value in facts:
        grid.add_row(Text(name, style="dim"), Text(value, overflow="fold"))
    return grid


def print_facts(facts: Mapping[str, str]) -> None:
    """Print one fact a line, its name first."""
    if not sys.stdout.isatty():
        for name, value in facts.items():
            print(f"{name}\t{value}")
        return
    from rich.console import Console

    Console().print(_grid(facts.items()))


def print_json(value: Any) -> None:
    """Print an object or list for another program."""
    print(json.dumps(value, indent=1))
