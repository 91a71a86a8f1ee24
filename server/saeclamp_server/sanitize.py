"""Texts of a server, a model or a file, made fit to be printed."""

from __future__ import annotations


def escape_control_chars(text: str) -> str:
    r"""Write control characters, which a terminal would obey, as escapes such as `\x1b`."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def escape_to_one_line(text: str) -> str:
    """Write a text in one line, with its control characters as escapes."""
    return escape_control_chars(" ".join(text.split()))
