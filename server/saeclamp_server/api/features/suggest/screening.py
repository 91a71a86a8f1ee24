"""A first look at clamps, on a few questions: which of them deserve a test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saeclamp_server.api.features.suggest.trials import TrialArm
from saeclamp_server.api.features.text_activations import FeatureId

PAIR_SHARE = 0.7
"""Share of its own strength that a feature of a pair gets: at right angles, both move the stream as far as one did."""
MAX_PERPLEXITY = 3.0
"""Multiple of unsteered answers' perplexity. Sampled answers about something unusual have about 2; text falling apart, 5."""
MAX_REPETITION = 0.5


@dataclass(frozen=True)
class ScreenedArm:
    """A clamp that was tried on a few questions."""

    arm: TrialArm
    gain: float
    perplexity: float | None
    """Perplexity in multiples of the unsteered answers'; None where that was not asked."""
    repetition: float

    @property
    def is_text(self) -> bool:
        """True if answers are known to be readable."""
        return self.perplexity is not None and is_text(self.perplexity, self.repetition)


def is_text(perplexity: float, repetition: float) -> bool:
    """Tell whether answers are readable."""
    return perplexity <= MAX_PERPLEXITY and repetition <= MAX_REPETITION


def finalists(screened: Sequence[ScreenedArm]) -> list[TrialArm]:
    """
    Choose what is put to the test: the best two features, the first also a step weaker, and the first in two pairs.

    screened: largest gain first
    """
    best: dict[FeatureId, TrialArm] = {}
    for one in screened:
        if one.gain > 0 and one.is_text:
            best.setdefault(one.arm.features[0], one.arm)
    singles = [*best.values()][:3]
    if not singles:
        return []
    first, *others = singles
    (strength,) = first.strengths
    weaker = [
        one.arm
        for one in screened
        # in the same direction
        if one.arm.features == first.features and 0 < one.arm.strengths[0] * strength < strength**2
    ]
    step = [max(weaker, key=lambda arm: abs(arm.strengths[0]))] if weaker else []
    return [first, *step, *others[:1], *(_pair(first, other) for other in others)]


def _pair(one: TrialArm, other: TrialArm) -> TrialArm:
    return TrialArm(
        (*one.features, *other.features),
        tuple(round(PAIR_SHARE * strength, 6) for strength in (*one.strengths, *other.strengths)),
        tuple(PAIR_SHARE * value for value in (*one.values, *other.values)),
    )
