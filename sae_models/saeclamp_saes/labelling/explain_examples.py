"""What an explainer is shown of a feature, and what its explanation is tested on."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from saeclamp_saes.labelling.table import Example, Feature, Labels

TOP_QUANTILE, LOWEST_SHOWN = 9, 4
"""Examples of the strongest quantile and down to the middle are shown; those to test on are of all quantiles."""
FEWEST = 2
"""Examples to show, and to test on; with fewer a feature is not explained."""
TRIES = 8
"""Features to look at, for each example of another feature that is wanted."""


@dataclass(frozen=True)
class Material:
    """Of one feature."""

    strong: tuple[Example, ...]
    """Shown: of the strongest quantile"""
    weaker: tuple[Example, ...]
    """Shown: of the quantiles from there to the middle"""
    activating: tuple[Example, ...]
    """Held out"""
    others: tuple[Example, ...]
    """Examples of other features, as many"""
    chance_active: float
    """
    How likely it is, at most about, that the feature is active in one of `others`: 1 - (1 - density) ^ tokens, as in any
    text of that length. Labels do not say where else a feature is active, so of a dense one some are counted against an
    explanation that is right.
    """

    @property
    def shown(self) -> tuple[Example, ...]:
        return (*self.strong, *self.weaker)


def material_of(labels: Labels, feature: Feature) -> Material | None:
    """
    Divide a feature's examples into those to show and those to test on, and find others to compare with.

    The same labels give the same, whatever was asked for before. None: it has too few examples.
    """
    shown, held_out = _divided(feature.examples)
    if len(shown) < FEWEST or len(held_out) < FEWEST:
        return None
    chance = random.Random(f"{labels.info.decoder_sha256} {feature.index}")
    others = _others(labels, feature, len(held_out), chance)
    if len(others) < FEWEST:
        return None
    length = sum(len(example.tokens) for example in others) / len(others)
    return Material(
        strong=tuple(example for example in shown if example.quantile == TOP_QUANTILE),
        weaker=tuple(example for example in shown if example.quantile < TOP_QUANTILE),
        activating=held_out,
        others=others,
        chance_active=1 - (1 - feature.density) ** length,
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


def _others(labels: Labels, feature: Feature, num: int, chance: random.Random) -> tuple[Example, ...]:
    """
    Draw examples of features that are not like it, in which it is probably not active.

    The best have none of the tokens on which it usually is active, and are from documents in which it has no example.
    """
    alike = {feature.index, *(neighbour.index for neighbour in feature.neighbours)}
    documents = {example.document for example in feature.examples}
    usual = _usual_tokens(feature.examples)
    taken = {text_of(example) for example in feature.examples}
    found: dict[bool, list[Example]] = {True: [], False: []}
    for _ in range(TRIES * num):
        index = chance.randrange(len(labels))
        if index in alike or not (examples := labels[index].examples):
            continue
        example = chance.choice(examples)
        if text_of(example) not in taken:
            taken.add(text_of(example))
            found[usual.isdisjoint(example.tokens) and example.document not in documents].append(example)
        if len(found[True]) == num:
            break
    return tuple([*found[True], *found[False]][:num])


def _usual_tokens(examples: Sequence[Example]) -> set[str]:
    """Tokens on which it is active more often than not, where its examples have them."""
    occurrences: Counter[str] = Counter()
    active: Counter[str] = Counter()
    for example in examples:
        occurrences.update(example.tokens)
        active.update(token for token, act in zip(example.tokens, example.acts, strict=True) if act > 0)
    return {token for token, times in active.items() if 2 * times > occurrences[token]}
