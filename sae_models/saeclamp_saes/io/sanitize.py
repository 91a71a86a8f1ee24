"""Texts that somebody else wrote, made fit to be kept and shown."""

from __future__ import annotations

LONGEST_TEXT = 1000
"""Characters. What is longer is no label."""


def one_line(text: str) -> str:
    """Make one line of it, without control characters (which a terminal would obey), and of bounded length."""
    words = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return words if len(words) <= LONGEST_TEXT else f"{words[: LONGEST_TEXT - 1]}…"
