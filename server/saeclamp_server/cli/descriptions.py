"""A feature in a table's cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from saeclamp.types import Described, Label


def about(one: Described) -> str:
    """Say what a feature is about, and how well its label holds."""
    return labelled(one.label) if one.label else one.description or "-"


def labelled(label: Label) -> str:
    """Write a label, with its score."""
    score = "" if label.score is None else f" ({label.score:.2f})"
    return f"{label.text}{score}"
