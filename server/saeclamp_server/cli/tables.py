"""
Tables, facts and columns as wide as the terminal, and tab-separated rows where another program reads them.

Nothing but Python's own library is needed: these commands run where only the client is installed.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, TextIO

LONG = 24
"""Characters of a cell up to which it is not wrapped: names and numbers, which are copied or compared, stay whole."""
GAP = "  "
LEAST_COLUMN = 20
"""Characters of a column of prose; where the terminal has no room for it, columns stand below each other."""


def terminal_width() -> int:
    """Count the characters of a line; 80 where that cannot be told."""
    return max(shutil.get_terminal_size().columns, 1)


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under a header; where they are too wide, a few lines for each row."""
    if not sys.stdout.isatty():
        for row in (headers, *rows):
            print("\t".join(row))
        return
    print("\n".join(table(headers, [*rows], terminal_width())))


def print_facts(facts: Mapping[str, str]) -> None:
    """Print one fact a line, its name first."""
    if not sys.stdout.isatty():
        for name, value in facts.items():
            print(f"{name}\t{value}")
        return
    print("\n".join(grid([*facts.items()], terminal_width())))


def print_json(value: Any) -> None:
    """Print an object or list for another program."""
    print(json.dumps(value, indent=1))


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Lay rows out in lines of at most `width` characters."""
    natural = [max(map(cell_width, column)) for column in zip(headers, *rows, strict=True)]
    least = [min(one, LONG) for one in natural]
    room = width - len(GAP) * (len(headers) - 1)
    if sum(least) > room:
        return _records(headers, rows, width)
    widths = list(natural)
    while sum(widths) > room:  # the widest gives first
        at = max((n for n in range(len(widths)) if widths[n] > least[n]), key=lambda n: widths[n])
        widths[at] -= 1
    lines = [*_joined(headers, widths), GAP.join("─" * one for one in widths)]
    for row in rows:
        lines += _joined(row, widths)
    return lines


def side_by_side(titles: Sequence[str], cells: Sequence[Sequence[str]], width: int) -> list[str]:
    """
    Lay prose out in columns of equal width under their titles; below each other where there is no room for that.

    cells: of each column its paragraphs
    """
    column = (width - len(GAP) * (len(titles) - 1)) // len(titles)
    if len(titles) > 1 and column < LEAST_COLUMN:
        stacked = [
            line
            for title, paragraphs in zip(titles, cells, strict=True)
            for line in (*side_by_side([title], [paragraphs], width), "")
        ]
        return stacked[:-1]
    widths = [column] * len(titles)
    lines = [*_joined(titles, widths), GAP.join("─" * column for _ in titles)]
    wrapped = [[line for part in paragraphs for line in wrap(part, column)] for paragraphs in cells]
    return lines + [GAP.join(map(_padded, row, widths)).rstrip() for row in zip_longest(*wrapped, fillvalue="")]


def grid(facts: Sequence[tuple[str, str]], width: int) -> list[str]:
    """Lay out one fact a line, its name first."""
    names = max((cell_width(name) for name, _ in facts), default=0)
    room = width - names - len(GAP)
    if room < LEAST_COLUMN:  # a value in the line below its name
        return [line for name, value in facts for line in (*wrap(name, width), *wrap(f"  {value}", width))]
    return [line for fact in facts for line in _joined(fact, (names, room))]


class Repainted:
    """Lines at the lower end of a terminal, which are painted over and over."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._num_painted = out, 0

    def paint(self, lines: Sequence[str], is_final: bool = False) -> None:
        """
        Replace the lines.

        is_final: they will not be replaced; else there are only as many as fit, as what has scrolled away stays
        """
        if not is_final:
            lines = lines[-max(shutil.get_terminal_size().lines - 1, 1) :]
        up = f"\x1b[{self._num_painted}A" if self._num_painted else ""
        self._out.write(f"{up}\r\x1b[J" + "".join(f"{line}\n" for line in lines))
        self._out.flush()
        self._num_painted = len(lines)


def wrap(text: str, width: int) -> list[str]:
    """Break a text into lines of at most `width` characters, at blanks where there are any; its own breaks stay."""
    return [line for paragraph in text.splitlines() or [""] for line in _wrapped(paragraph, max(width, 1))]


def cell_width(text: str) -> int:
    """Count the places that a text takes on a terminal: two for a wide letter, none for a mark on another."""
    return len(text) if text.isascii() else sum(map(_char_width, text))


def _char_width(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _wrapped(paragraph: str, width: int) -> list[str]:
    lines, line = [], ""
    for word in re.findall(r"\s+|\S+", paragraph):
        while cell_width(line + word) > width:
            if line.strip():
                lines.append(line.rstrip())
                line = ""
                if word.isspace():
                    word = ""
            elif word.isspace():
                line, word = "", ""
            else:  # a word that is longer than a line
                head = _head(line + word, width)
                lines.append(head)
                line, word = "", (line + word)[len(head) :]
        line += word
    return [*lines, line.rstrip()] if line or not lines else lines


def _head(text: str, width: int) -> str:
    """Take as many letters as fit, but at least one."""
    taken = 0
    for number, char in enumerate(text):
        taken += _char_width(char)
        if taken > width and number:
            return text[:number]
    return text


def _joined(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    cells = [wrap(cell, width) for cell, width in zip(row, widths, strict=True)]
    return [GAP.join(map(_padded, line, widths)).rstrip() for line in zip_longest(*cells, fillvalue="")]


def _padded(text: str, width: int) -> str:
    return text + " " * (width - cell_width(text))


def _records(headers: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Give each row a few lines, one a cell that holds something."""
    facts = []
    for row in rows:
        facts.append((headers[0], row[0]))
        facts += [(f"  {header}", cell) for header, cell in zip(headers[1:], row[1:], strict=True) if cell]
    return grid(facts, width)
