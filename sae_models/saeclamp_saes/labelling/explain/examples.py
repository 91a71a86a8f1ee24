"""What an explainer is shown of a feature, and what its explanation is tested on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saeclamp_saes.labelling.table import Example, Feature

TOP_QUANTILE, LOWEST_SHOWN = 9, 4
"""Examples of the strongest quantile and down to the middle are shown; those to test on are of all quantiles."""
FEWEST = 2
"""Examples to show, and to test on, and pieces without the feature; with fewer it is not explained."""


@dataclass(frozen=True)
class ExplainMaterial:
    """Of one feature."""

    strong: tuple[Example, ...]
    """Shown: of the strongest quantile"""
    weaker: tuple[Example, ...]
    """Shown: of the quantiles from there to the middle"""
    activating: tuple[Example, ...]
    """Held out"""
    others: tuple[Example, ...]
    """Pieces of text in which the feature is not active, as many where there are"""

    @property
    def shown(self) -> tuple[Example, ...]:
        return (*self.strong, *self.weaker)


def select_material(feature: Feature) -> ExplainMaterial | None:
    """
    Divide a feature's examples into those to show and those to test on, and take as many pieces without it.

    None: it has too few.
    """
    shown, held_out = _divided(feature.examples)
    others = _others(feature)[: len(held_out)]
    if min(len(shown), len(held_out), len(others)) < FEWEST:
        return None
    return ExplainMaterial(
        strong=tuple(example for example in shown if example.quantile == TOP_QUANTILE),
        weaker=tuple(example for example in shown if example.quantile < TOP_QUANTILE),
        activating=held_out,
        others=others,
    )


def text_of(example: Example) -> str:
    """Return its text."""
    return "".join(example.tokens)


def marked(example: Example, marks: tuple[str, str]) -> str:
    """Return its text, with marks around tokens on which the feature is at least half as active as at its peak."""
    opening, closing = marks
    parts, is_open = [], False
    for token, act in zip(example.tokens, example.acts, strict=True):
        is_strong = act >= example.peak_act / 2
        if is_strong is not is_open:
            parts.append(opening if is_strong else closing)
            is_open = is_strong
        parts.append(token)
    return "".join([*parts, closing] if is_open else parts)


def _divided(examples: Sequence[Example]) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Of each quantile every second one is shown; a text that is shown is not tested on."""
    shown: list[Example] = []
    held_out: list[Example] = []
    seen: dict[int, int] = {}
    for example in examples:
        rank = seen[example.quantile] = seen.get(example.quantile, -1) + 1
        (held_out if rank % 2 else shown).append(example)
    shown = [example for example in shown if example.quantile >= LOWEST_SHOWN]
    texts = {text_of(example) for example in shown}
    return tuple(shown), tuple(example for example in held_out if text_of(example) not in texts)


def _others(feature: Feature) -> tuple[Example, ...]:
    """Return the pieces without it, each text once, that do not read like one of its examples: it saw what stood before."""
    texts = {text_of(example) for example in feature.examples}
    by_text = {text_of(piece): piece for piece in feature.inactive}
    return tuple(piece for text, piece in by_text.items() if text not in texts)
