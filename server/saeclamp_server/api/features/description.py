"""A feature in words: the same ones wherever it is named."""

from __future__ import annotations

import json
from collections.abc import Sequence

from saeclamp.types import Label

NUM_TOKENS = 5
"""Tokens that a description names."""


def description(label: Label | None, tokens: Sequence[str], promotes: Sequence[str]) -> str | None:
    """
    Describe a feature, so that it shows as more than a number. None where nothing is known of it.

    label:    the one that holds: most features have none, although their tokens are known
    tokens:   on which it is active
    promotes: whose logits its decoder row raises
    """
    if label is not None:
        return label.text
    if tokens:
        return f"active on {_quoted(tokens)}"
    return f"promotes {_quoted(promotes)}" if promotes else None


def _quoted(tokens: Sequence[str]) -> str:
    return ", ".join(json.dumps(token, ensure_ascii=False) for token in tokens[:NUM_TOKENS])
