"""Names of uploaded vectors in steering programs, beside those of SAEs."""

from __future__ import annotations

VECTOR = "vector:"
"""Prefix of an uploaded vector's name where an edit names it in place of an SAE; its index is 0."""


def vector_of(name: str) -> str | None:
    """Return the vector that a program names; None where the name is that of an SAE."""
    return name.removeprefix(VECTOR) if name.startswith(VECTOR) else None
