"""
Pieces of HTML with styles inline, which need no network.

Labels, names and text come from files and models that anybody may have made: all of it is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

HUE = "230,159,0"
"""Orange that people who confuse red and green can tell from white."""
ADDED = "background:rgba(0,114,178,.18)"
FAINT = "opacity:.5"
CELL = "padding:2px 8px;text-align:left;vertical-align:top"


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Tabulate plain values."""
    return table_of_html(headers, ([_shown(value) for value in row] for row in rows))


def table_of_html(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Tabulate what is HTML already."""
    head = "".join(f"<th style='{CELL}'>{escape(header)}</th>" for header in headers)
    body = "".join("<tr>" + "".join(f"<td style='{CELL}'>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def span(text: str, style: str = "", title: str = "") -> str:
    """Mark a piece of running text."""
    shown = escape(text).replace("\n", "↵<br>")
    hover = f' title="{escape(title)}"' if title else ""
    return f'<span style="{style}"{hover}>{shown}</span>' if style or hover else f"<span>{shown}</span>"


def warm(text: str, act: float, largest: float, otherwise: str = "") -> str:
    """
    Mark a token the more strongly, the nearer its activation is to the largest.

    otherwise: style of one that is not active
    """
    share = min(1.0, abs(act / largest)) if largest else 0.0
    return span(text, f"background:rgba({HUE},{share:.2f})" if act else otherwise, number(act) if act else "")


def heading(bold: str, rest: str = "") -> str:
    """Name what follows."""
    return f"<p style='margin:6px 0'><b>{escape(bold)}</b> {escape(rest)}</p>"


def small(lines: Iterable[str]) -> str:
    """Add remarks, a line each."""
    return "".join(f"<p><small>{escape(line)}</small></p>" for line in lines)


def number(value: float) -> str:
    """Write a measured number."""
    return f"{value:.3g}"


def _shown(value: object) -> str:
    return number(value) if isinstance(value, float) else "" if value is None else escape(str(value))
