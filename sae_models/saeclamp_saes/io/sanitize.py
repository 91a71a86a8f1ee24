"""Texts that somebody else wrote, made fit to be kept and shown."""

from __future__ import annotations

MAX_LABEL_CHARS = 1000
"""Characters. What is longer is no label."""


def one_line(text: str) -> str:
    """Make one line of it, without control characters (which a terminal would obey), and of bounded length."""
    words = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return words if len(words) <= MAX_LABEL_CHARS else f"{words[: MAX_LABEL_CHARS - 1]}…"
