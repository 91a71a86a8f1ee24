"""The end of an attempt to fulfil a wish: the steering that passed the test, or nothing; and all that was tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from saeclamp.types import (
    Clamp,
    Steering,
    Suggest,
    SuggestedControl,
    SuggestedFeature,
    SuggestedPoint,
    SuggestedTrial,
    Suggestion,
)
from saeclamp_server.api.features import FeatureSearch
from saeclamp_server.api.features.suggest.questions import FOR_SCREENING, FOR_TEST
from saeclamp_server.api.features.suggest.screening import ScreenedArm, is_text
from saeclamp_server.api.features.suggest.superiority_test import LEVEL, Superiority
from saeclamp_server.api.features.suggest.trials import TrialArm
from saeclamp_server.api.features.text_activations import FeatureId
from saeclamp_server.steering import SteeringContext

LEAST_ADVANTAGE = 0.03
"""Gain over the control arm below which nobody would notice, however sure it is."""
PAIR_ADVANTAGE = 0.02
"""Gain that a pair must have over a single feature to be worth its second part."""


@dataclass(frozen=True)
class FeatureCandidate:
    """A feature that was thought of."""

    feature: FeatureId
    found_by: tuple[str, ...]


@dataclass(frozen=True)
class Finalist:
    """A steering that was put to the test."""

    arm: TrialArm
    judged: Superiority
    perplexity: float
    repetition: float
    example: str

    @property
    def failure(self) -> str | None:
        """Say why it does not work; None: it does."""
        judged = self.judged
        if not is_text(self.perplexity, self.repetition):
            return f"Its text falls apart: {self.perplexity:.1f} times the unsteered perplexity."
        if judged.p_controls is None or judged.control is None or judged.p_baseline > LEVEL:
            return f"Unsteered answers may come as near to the wish by chance: p = {judged.p:.2g}, corrected."
        if judged.p > LEVEL:
            return f"Random features that move the stream as far may gain as much: p = {judged.p:.2g}, corrected."
        if judged.gain - judged.control < LEAST_ADVANTAGE:
            return f"It gains less than {LEAST_ADVANTAGE:g} more than random features do, too little to be noticed."
        return None


@dataclass
class Attempt:
    """All that was done about a wish."""

    tried: Sequence[tuple[FeatureCandidate, Sequence[TrialArm]]]
    passed: Sequence[tuple[FeatureCandidate, str]]
    """Candidates that were not tried, with the reasons."""
    screened: Sequence[ScreenedArm]
    """Largest gain first."""
    finalists: Sequence[TrialArm]
    """Steerings that were to be put to the test."""
    tested: Sequence[Finalist] = ()
    """Results of `finalists`; none where there was nothing to test, or nothing to compare with."""
    controls: Sequence[tuple[TrialArm, float]] = field(default_factory=list)
    """Control arms with their gains."""

    @property
    def num_tried(self) -> int:
        """Count the clamps and pairs of which the best were put to the test."""
        return len(self.screened) + sum(len(arm.features) > 1 for arm in self.finalists)


def verdict(request: Suggest, attempt: Attempt, context: SteeringContext, search: FeatureSearch) -> Suggestion:
    """Say what was found, and of all else why not."""
    chosen = _chosen(attempt.tested)
    taken = chosen.arm.features if chosen else ()
    order = [feature for one in attempt.screened for feature in one.arm.features]
    tried = sorted(attempt.tried, key=lambda one: order.index(one[0].feature))

    def described(idea: FeatureCandidate, reason: str | None) -> SuggestedFeature:
        feature = idea.feature
        return SuggestedFeature(
            feature=str(feature),
            name=context.name_of(*feature),
            label=search.label(*feature),
            description=search.description(*feature),
            output_score=search.output_score(*feature),
            found_by=idea.found_by,
            curve=_curve(feature, attempt.screened),
            reason=reason,
        )

    features = {idea.feature: described(idea, None) for idea, _ in tried if idea.feature in taken}
    rejected = [described(idea, _reason(idea.feature, attempt)) for idea, _ in tried if idea.feature not in taken]
    trials = sorted((_trial(one, chosen) for one in attempt.tested), key=lambda trial: -trial.gain)
    return Suggestion(
        wish=request.wish,
        outcome="found" if chosen else "nothing_found",
        steering=_steering(chosen.arm).to_json() if chosen else None,
        chosen=tuple(features[feature] for feature in taken),
        best=_trial(chosen, chosen) if chosen else None,
        example=chosen.example if chosen else None,
        trials=tuple(trials),
        controls=tuple(
            SuggestedControl(feature=str(arm.features[0]), value_act=arm.values[0], gain=gain)
            for arm, gain in attempt.controls
        ),
        num_tried=attempt.num_tried,
        test=_test(attempt) if attempt.tested else None,
        alternatives=(*rejected, *(described(idea, reason) for idea, reason in attempt.passed)),
        note=None if chosen else _note(attempt),
    )


def _chosen(tested: Sequence[Finalist]) -> Finalist | None:
    """Take what gains most of what works; a pair only where it gains clearly more than a single feature."""
    return max(
        (one for one in tested if one.failure is None),
        key=lambda one: one.judged.gain - PAIR_ADVANTAGE * (len(one.arm.features) - 1),
        default=None,
    )


def _steering(arm: TrialArm) -> Steering:
    clamps = zip(arm.features, arm.strengths, strict=True)
    return Steering(interventions=tuple(Clamp(feature=str(one), value=strength) for one, strength in clamps))


def _curve(feature: FeatureId, screened: Sequence[ScreenedArm]) -> tuple[SuggestedPoint, ...]:
    points = [
        SuggestedPoint(
            strength=one.arm.strengths[0], gain=one.gain, perplexity=one.perplexity, repetition=one.repetition
        )
        for one in screened
        if one.arm.features == (feature,)
    ]
    return tuple(sorted(points, key=lambda point: point.strength))


def _trial(one: Finalist, chosen: Finalist | None) -> SuggestedTrial:
    failure = one.failure
    better = None if chosen is None or one is chosen else "It works, but another was taken."
    return SuggestedTrial(
        features=tuple(map(str, one.arm.features)),
        strengths=one.arm.strengths,
        **one.judged._asdict(),
        perplexity=one.perplexity,
        repetition=one.repetition,
        works=failure is None,
        reason=failure or better,
    )


def _reason(feature: FeatureId, attempt: Attempt) -> str:
    """Say why a feature that was tried was not taken."""
    tests = [one for one in attempt.tested if feature in one.arm.features]
    if any(one.failure is None for one in tests):
        return "It works, but another was taken."
    alone = [one for one in tests if len(one.arm.features) == 1]
    if tests:
        best = max(alone or tests, key=lambda one: one.judged.gain)
        return best.failure if alone and best.failure else f"In a pair: {best.failure}"
    points = [one for one in attempt.screened if one.arm.features == (feature,)]
    best_point = max(points, key=lambda one: one.gain)
    at = f"{best_point.gain:+.3f} at {best_point.arm.strengths[0]:g} x max"
    if all(one.gain <= 0 for one in points):
        return f"At no strength do answers come nearer to the wish ({at})."
    if best_point.perplexity is not None and not any(one.is_text for one in points):
        return f"Where answers come nearer to the wish, their text falls apart ({at})."
    return f"On a first look others gained more ({at})."


def _test(attempt: Attempt) -> str:
    against = f"unsteered answers (exact permutation of pairs, times {len(attempt.tested)} tested)"
    if attempt.controls:
        against += (
            f" and against {len(attempt.controls)} random features that move the stream as far (Student's t, times "
            f"{attempt.num_tried} tried)"
        )
    return f"{len(FOR_TEST)} questions that had no part in choosing, against {against}"


def _note(attempt: Attempt) -> str:
    num = len(attempt.tried)
    if not num:
        return "Nothing found: no feature that has a stored maximum comes to mind."
    if not attempt.finalists:
        return (
            f"Nothing found: of {num} features, at {len(attempt.screened)} clamps, none brings answers to "
            f"{len(FOR_SCREENING)} questions nearer to the wish and leaves them readable."
        )
    if not attempt.tested:
        return "Nothing found: there are too few other features to compare with, so no gain would mean anything."
    return (
        f"Nothing found: of {num} features, at {attempt.num_tried} clamps and pairs, the best {len(attempt.tested)} were "
        "tested, and none surely gains more than chance and random features do while answers stay readable."
    )
