"""Texts of others are shown in one line."""

from __future__ import annotations

import pytest

from saeclamp_saes.io.sanitize import MAX_MESSAGE_CHARS, first_line


@pytest.mark.parametrize(
    ("exc", "said"),
    [
        (ValueError("no such file.\nTry again."), "no such file"),
        (ValueError("\n  late\n"), "late"),
        (KeyError(), "KeyError"),
        (OSError(" "), "OSError"),
        (ValueError("x" * 999), "x" * MAX_MESSAGE_CHARS),
    ],
)
def test_a_message_is_its_first_line_or_its_class(exc: Exception, said: str) -> None:
    assert first_line(exc) == said
