"""Tables and columns are as wide as the terminal at most, however narrow it is, and lose no letter."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saeclamp_server.cli.chat_commands import helped
from saeclamp_server.cli.progress import bar
from saeclamp_server.cli.tables import Repainted, cell_width, side_by_side, table, wrap

HEADERS = ("feature", "name", "about", "max")
ROWS = [
    ("bundled/54", "golden-gate", "The Golden Gate Bridge and San Francisco, and what is near.", "219"),
    ("bundled/123", "sea", 'active on " sea", " ocean"', "147.85"),
]


def test_a_table_that_fits_is_as_wide_as_its_cells() -> None:
    assert table(("a", "name"), [("1", "sea"), ("22", "storms")], 80) == [
        "a   name",
        "──  ──────",
        "1   sea",
        "22  storms",
    ]


def test_sentences_are_wrapped_and_names_and_numbers_are_not() -> None:
    assert table(HEADERS, ROWS, 66) == [
        "feature      name         about                             max",
        "───────────  ───────────  ────────────────────────────────  ──────",
        "bundled/54   golden-gate  The Golden Gate Bridge and San    219",
        "                          Francisco, and what is near.",
        'bundled/123  sea          active on " sea", " ocean"        147.85',
    ]


def test_where_a_table_does_not_fit_each_row_has_lines_of_its_own() -> None:
    assert table(HEADERS, ROWS[:1], 40) == [
        "feature  bundled/54",
        "  name   golden-gate",
        "  about  The Golden Gate Bridge and San",
        "         Francisco, and what is near.",
        "  max    219",
    ]


@pytest.mark.parametrize("width", [80, 60, 40, 20, 12, 5, 1])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    columns = side_by_side(
        ["default", "smollm2-135m-instruct:sea"], [["word " * 30], ["x" * 100, "", "海" * 30]], width
    )
    for lines in (table(HEADERS, ROWS, width), columns, helped(width).splitlines()):
        assert max(map(cell_width, lines)) <= max(width, 2 if lines is columns else 1)


def test_columns_stand_below_each_other_where_there_is_no_room_beside() -> None:
    assert side_by_side(["one", "two"], [["It rains."], ["It pours."]], 42) == [
        "one                   two",
        "────────────────────  ────────────────────",
        "It rains.             It pours.",
    ]
    assert side_by_side(["one", "two"], [["It rains."], ["It pours."]], 41) == [
        "one",
        "─" * 41,
        "It rains.",
        "",
        "two",
        "─" * 41,
        "It pours.",
    ]


@given(st.text(alphabet="ab 海\u0301é", max_size=60), st.integers(2, 20))
def test_wrapping_keeps_every_letter_in_its_place(text: str, width: int) -> None:
    lines = wrap(text, width)
    assert re.sub(r"\s", "", "".join(lines)) == re.sub(r"\s", "", text)
    assert max(map(cell_width, lines)) <= width


def test_wide_letters_take_two_places_and_marks_none() -> None:
    assert [cell_width(text) for text in ("abc", "海", "e\u0301")] == [3, 2, 1]


def test_what_is_painted_again_stands_where_it_stood() -> None:
    out = io.StringIO()
    screen = Repainted(out)
    screen.paint(["one", "two"])
    screen.paint(["three"], is_final=True)
    assert out.getvalue() == "\r\x1b[Jone\ntwo\n\x1b[2A\r\x1b[Jthree\n"


def test_while_it_grows_no_more_is_painted_than_the_terminal_has_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINES", "4")
    out = io.StringIO()
    screen = Repainted(out)
    screen.paint(list("abcdef"))
    screen.paint(list("abcdefg"), is_final=True)
    assert out.getvalue() == "\r\x1b[Jd\ne\nf\n\x1b[3A\r\x1b[J" + "a\nb\nc\nd\ne\nf\ng\n"


def test_a_bar_says_what_is_done_and_fits_the_terminal() -> None:
    assert bar("answers", 5, 20, 30) == "answers ━━━━╌╌╌╌╌╌╌╌╌╌╌╌╌ 5/20"
    assert bar("answers", 20, 20, 80) == f"answers {'━' * 40} 20/20"
    assert [len(bar("answers", 0, 0, width)) <= width for width in (80, 30, 12, 5)] == [True] * 4
