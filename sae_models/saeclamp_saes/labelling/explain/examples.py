"""Division of a feature's examples: those that an explainer is shown, and those that its explanation is tested on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saeclamp_saes.labelling.table import Example, Feature

TOP_QUANTILE, LOWEST_SHOWN = 9, 4
"""Quantiles from which examples are shown, the strongest and the lowest; those to test on are of all quantiles."""
FEWEST = 2
"""Least number of examples to show, of examples to test on, and of pieces without the feature."""


@dataclass(frozen=True)
class ExplainMaterial:
    """Examples to explain one feature by, and to test the explanation on."""

    strong: tuple[Example, ...]
    """Shown examples, of the strongest quantile."""
    weaker: tuple[Example, ...]
    """Shown examples, of the quantiles from there to the middle."""
    activating: tuple[Example, ...]
    """Held-out examples, in which the feature is active."""
    others: tuple[Example, ...]
    """Pieces of text in which the feature is not active, as many if there are enough."""

    @property
    def shown(self) -> tuple[Example, ...]:
        return (*self.strong, *self.weaker)


def select_material(feature: Feature) -> ExplainMaterial | None:
    """
    Divide a feature's examples into those to show and those to test on, and take as many pieces without it.

    returns: None for a feature with too few
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
    """Return an example's text."""
    return "".join(example.tokens)


def marked(example: Example, marks: tuple[str, str]) -> str:
    """Return an example's text, with marks around tokens on which the feature is at least half as active as at its peak."""
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
    """Show every second example of each quantile, and hold out the others, unless their text is shown."""
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
    """Return the pieces without it, each text once, but none with an example's text: the model saw more than that."""
    texts = {text_of(example) for example in feature.examples}
    by_text = {text_of(piece): piece for piece in feature.inactive}
    return tuple(piece for text, piece in by_text.items() if text not in texts)
