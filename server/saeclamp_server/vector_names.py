"""Names of uploaded vectors in steering programs, beside those of SAEs."""

from __future__ import annotations

VECTOR = "vector:"
"""Prefix of an uploaded vector's name where an edit names it in place of an SAE; its index is 0."""


def is_vector(name: str) -> bool:
    """Tell whether a name is that of a vector, not of an SAE."""
    return name.startswith(VECTOR)
