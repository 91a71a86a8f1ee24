"""Effects of taking features away on the likelihood of a token, one by one and together, in batches of prefills."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from saeclamp.types import Ablate, Operation, Scale, Steering
from saeclamp_server.api.features.text_activations import FeatureId
from saeclamp_server.api.model_client import GenerateRequest, GenerateResult, ModelClient, Prompt, generate_all
from saeclamp_server.api.progress import ProgressCounter
from saeclamp_server.steering import SteeringContext, resolve

STEP = 0.125
"""Share by which activations are scaled up and down for the linear prediction."""


@dataclass(frozen=True)
class AttributionTarget:
    """A context, and the tokens whose likelihood behind it is explained."""

    prompt: Prompt
    path: str
    target: int
    against: int | None

    def run(self, edits: Sequence[Operation], context: SteeringContext) -> tuple[GenerateRequest, str]:
        steering = resolve(Steering(interventions=tuple(edits)), context) if edits else None
        tokens = (self.target,) if self.against is None else (self.target, self.against)
        return GenerateRequest(self.prompt.ids, steering, logprobs_of=tokens), self.path

    def value(self, outcome: GenerateResult) -> float:
        logprobs = outcome.logprobs[0]
        return logprobs[self.target] - (0.0 if self.against is None else logprobs[self.against])


@dataclass(frozen=True)
class SingleEffects:
    """The effects of taking each feature away by itself, in the order of the features."""

    unsteered: GenerateResult
    base: float
    """Value without any change."""
    changes: list[float]
    predicted: list[float]
    """The changes that a linear prediction expects."""

    @property
    def order(self) -> list[int]:
        """Numbers of the features, the largest change first."""
        return sorted(range(len(self.changes)), key=lambda number: -abs(self.changes[number]))


@dataclass(frozen=True)
class JointEffects:
    """The effects of taking several features away at once."""

    of_pairs: dict[tuple[int, int], float]
    """Changes by the numbers of both features."""
    of_all: float


async def take_away_singly(
    tried: Sequence[FeatureId], question: AttributionTarget, model: ModelClient, context: SteeringContext
) -> SingleEffects:
    """Take each feature away, and scale it a little for the linear prediction."""
    edits: list[list[Operation]] = [[]]
    edits += [[_ablate(feature)] for feature in tried]
    edits += [[_scale(feature, factor)] for factor in (1 - STEP, 1 + STEP) for feature in tried]
    unsteered, *outcomes = await generate_all(model, [question.run(edit, context) for edit in edits])
    base, values, num = question.value(unsteered), [question.value(outcome) for outcome in outcomes], len(tried)
    changes = [value - base for value in values[:num]]
    # central differences: the error of one-sided ones is of first order in the step
    slopes = [(more - less) / (2 * STEP) for less, more in zip(values[num : 2 * num], values[2 * num :], strict=True)]
    return SingleEffects(unsteered, base, changes, [-slope for slope in slopes])


async def take_away_jointly(
    tried: Sequence[FeatureId],
    alone: SingleEffects,
    num_pairs: int,
    question: AttributionTarget,
    model: ModelClient,
    context: SteeringContext,
    counter: ProgressCounter,
) -> JointEffects:
    """Take pairs of the features that matter most away, and all features."""
    pairs = [*islice(_pairs(alone.order), num_pairs)]
    groups = [[tried[number] for number in pair] for pair in pairs] + ([tried] if tried else [])
    runs = [question.run([_ablate(feature) for feature in group], context) for group in groups]
    counter.begin("taking features away together", len(runs))
    changes = [question.value(outcome) - alone.base for outcome in await generate_all(model, runs)]
    of_all = changes.pop() if tried else 0.0
    return JointEffects(dict(zip(pairs, changes, strict=True)), of_all)


def _pairs(order: Sequence[int]) -> Iterable[tuple[int, int]]:
    """Yield pairs of the features that matter most, those of the first ones first."""
    return (
        (one, other) for last in range(1, len(order)) for one, other in ((order[n], order[last]) for n in range(last))
    )


def _ablate(feature: FeatureId) -> Ablate:
    return Ablate(feature=str(feature), tokens="prompt")


def _scale(feature: FeatureId, factor: float) -> Scale:
    return Scale(feature=str(feature), factor=factor, tokens="prompt")
