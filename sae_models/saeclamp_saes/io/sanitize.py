"""Texts of files, servers, models and other libraries, made safe to keep and to print."""

from __future__ import annotations

from collections.abc import Callable

MAX_LABEL_CHARS = 1000
"""Characters of a label, at most; a longer text is cut."""
MAX_MESSAGE_CHARS = 200
"""Characters that are repeated of another library's message, at most."""


def first_line(exc: object) -> str:
    """Shorten another library's message to its first line, without the period; one without words to its class's name."""
    said = str(exc).strip().partition("\n")[0].rstrip(". ")
    return said[:MAX_MESSAGE_CHARS] or type(exc).__name__


def replace_control_chars(text: str, substitute: Callable[[str], str]) -> str:
    """Replace each character that a terminal would obey, and not show."""
    return "".join(char if char.isprintable() else substitute(char) for char in text)


def escape_control_chars(text: str) -> str:
    r"""Write control characters as escapes such as `\x1b`: what is printed shows that they are there."""
    return replace_control_chars(text, lambda char: char.encode("unicode_escape").decode())


def escape_to_one_line(text: str) -> str:
    """Write a text in one line, with its control characters as escapes."""
    return escape_control_chars(" ".join(text.split()))


def one_line(text: str) -> str:
    """Make a text one line, with blanks in place of control characters, and of bounded length: what is kept is clean."""
    words = " ".join(replace_control_chars(text, lambda _: " ").split())
    return words if len(words) <= MAX_LABEL_CHARS else f"{words[: MAX_LABEL_CHARS - 1]}…"
