"""Texts from files and endpoints, made safe to keep and to show."""

from __future__ import annotations

MAX_LABEL_CHARS = 1000
"""Characters of a label, at most; a longer text is cut."""
MAX_MESSAGE_CHARS = 200
"""Characters that are repeated of another library's message, at most."""


def first_line(exc: object) -> str:
    """Shorten another library's message to its first line, without the period; one without words to its class's name."""
    said = str(exc).strip().partition("\n")[0].rstrip(". ")
    return said[:MAX_MESSAGE_CHARS] or type(exc).__name__


def one_line(text: str) -> str:
    """Make a text one line, without control characters (which a terminal would obey), and of bounded length."""
    words = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return words if len(words) <= MAX_LABEL_CHARS else f"{words[: MAX_LABEL_CHARS - 1]}…"
