"""Doses in words: how far a token is moved."""

from __future__ import annotations

LARGE = 1000
"""From which on a dose is written without a fraction; three digits of it would need an exponent."""


def dose_in_words(dose: float) -> str:
    """Write a dose as every table, receipt, warning and refusal does, so that the same one is found again."""
    return f"{dose:.3g}" if dose < LARGE else f"{dose:.0f}"
