"""On a terminal of any width, what is copied from a table stays in one piece."""

from __future__ import annotations

import re
import sys

import pytest

from saeclamp_saes.cli.output import print_table

HEADERS = ("feature", "name", "label", "active on", "density")
ROW = (
    "bundled/1752",
    "golden-gate",
    "The Golden Gate Bridge and San Francisco, [bold]seen[/bold]",
    "' the' ' Gate'",
    "0.01",
)


@pytest.mark.parametrize("width", [40, 80, 100, 160])
def test_names_and_numbers_are_never_wrapped(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_table(HEADERS, [ROW])
    drawn = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out)
    assert all(cell in drawn for cell in (ROW[0], ROW[1], ROW[3], ROW[4]))
    assert "[bold]" in drawn
    assert max(map(len, drawn.splitlines())) <= width


def test_another_program_reads_tabs(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(HEADERS, [ROW])
    assert capsys.readouterr().out == "\t".join(HEADERS) + "\n" + "\t".join(ROW) + "\n"
