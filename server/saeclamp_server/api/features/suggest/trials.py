"""Steerings that are tried on questions: the answers, how near they are to a wish, and whether they still are text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from itertools import count
from math import exp, hypot
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from saeclamp.types import MAX_VALUE, Clamp, Steering
from saeclamp_server.api.features import FeatureSearch
from saeclamp_server.api.features.text_activations import FeatureId
from saeclamp_server.api.model_client import (
    GenerateRequest,
    GenerateResult,
    ModelClient,
    Prompt,
    generate_all,
    score_answers,
)
from saeclamp_server.calibration.text_metrics import repetition
from saeclamp_server.errors import RequestError
from saeclamp_server.steering import SteeringContext, resolve
from saeclamp_server.threads import run_computation

SAMPLING = {"temperature": 0.7, "repetition_penalty": 1.1}
"""Sampled, so that steered and unsteered answers differ by chance alike; greedy ones are all of one kind, and unlike."""
SEEDS_APART = 2**20
"""Seeds that one seed of a request stands for: every answer has its own."""

MAX_SURPRISE = 300.0
"""Nats per token that are told apart; of more, a ratio would not be finite."""

Rows = NDArray[np.float32]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TrialArm:
    """Features that are clamped together, in activations."""

    features: tuple[FeatureId, ...]
    strengths: tuple[float, ...]
    """Clamps in multiples of each feature's maximum."""
    values: tuple[float, ...]
    """The same clamps in the encoders' units."""

    def steering(self) -> Steering:
        """Write it as it is tried, in activations."""
        clamps = zip(self.features, self.values, strict=True)
        return Steering(
            interventions=tuple(Clamp(feature=str(feature), value=value, unit="act") for feature, value in clamps)
        )

    def length(self, context: SteeringContext) -> float:
        """Return how far it moves the stream where none of its features is active, their rows taken to be orthogonal."""
        rows = (context.saes[feature.sae].norms.row_norms[feature.number] for feature in self.features)
        return hypot(*(value * row for value, row in zip(self.values, rows, strict=True)))


@dataclass(frozen=True)
class ArmAnswers:
    """Answers of an arm to some questions; without an arm, unsteered ones."""

    prompts: Sequence[Prompt]
    outcomes: Sequence[GenerateResult]
    similarity: Floats
    """(num_questions,), of each answer with the target."""

    @property
    def repetition(self) -> float:
        """Mean share of the last words that stood among these before."""
        return fmean(repetition(outcome.text) or 0.0 for outcome in self.outcomes)


@dataclass
class Trials:
    """The model that is asked, and what answers are compared with."""

    model: ModelClient
    context: SteeringContext
    search: FeatureSearch
    max_tokens: int
    seed: int
    target: Rows = field(default_factory=lambda: np.zeros(0, np.float32))
    """(width,), unit norm."""

    def __post_init__(self) -> None:
        self._seeds = count(self.seed * SEEDS_APART)

    async def answered(self, prompts: Sequence[Prompt], arms: Sequence[TrialArm | None]) -> list[list[GenerateResult]]:
        """Answer all questions with each of the arms, in one batch, every answer with a seed of its own."""
        steerings = [None if arm is None else resolve(arm.steering(), self.context) for arm in arms]
        runs = [
            GenerateRequest(prompt.ids, steering, self.max_tokens, {**SAMPLING, "seed": next(self._seeds)})
            for steering in steerings
            for prompt in prompts
        ]
        outcomes, num = await generate_all(self.model, [(run, "wish") for run in runs]), len(prompts)
        return [outcomes[start : start + num] for start in range(0, len(outcomes), num)]

    async def compared(self, prompts: Sequence[Prompt], arms: Sequence[TrialArm | None]) -> list[ArmAnswers]:
        """Answer as `answered` does, and compare every answer with the target."""
        return [
            ArmAnswers(prompts, outcomes, (await self.embedded(outcomes) @ self.target).astype(np.float64))
            for outcomes in await self.answered(prompts, arms)
        ]

    async def embedded(self, outcomes: Sequence[GenerateResult]) -> Rows:
        """Embed answers: (num_answers, width)."""
        return await self.sentences([outcome.text for outcome in outcomes])

    async def sentences(self, texts: Sequence[str]) -> Rows:
        """Embed texts: (num_texts, width)."""
        assert self.search.encoder is not None, "it was asked for"
        rows: Rows = await run_computation(self.search.encoder.encode, texts)
        return rows

    async def perplexity(self, answers: ArmAnswers) -> float:
        """Measure the perplexity of the tokens of all answers together, as the unsteered model sees them."""
        pairs = [(prompt.ids, outcome.ids) for prompt, outcome in zip(answers.prompts, answers.outcomes, strict=True)]
        seen = await score_answers(self.model, pairs, "wish")
        logprobs = [
            row[token] for (_, ids), rows in zip(pairs, seen, strict=True) for token, row in zip(ids, rows, strict=True)
        ]
        return exp(min(MAX_SURPRISE, -fmean(logprobs))) if logprobs else 1.0


def refusal(arm: TrialArm, context: SteeringContext) -> str | None:
    """Say why this server does not steer so, such as by a dose that it does not allow; None: it does."""
    if max(map(abs, arm.values)) > MAX_VALUE:
        return f"It would be clamped to more than {MAX_VALUE:g}."
    try:
        resolve(arm.steering(), context)
    except RequestError as exc:
        return str(exc)
    return None


def control_arms(
    num: int, beside: Sequence[TrialArm], taken: Set[FeatureId], context: SteeringContext, seed: int
) -> list[TrialArm]:
    """
    Draw random features, each clamped so that it moves the stream as far as one of the steerings does, by turns.

    beside: the steerings
    taken:  features that are not to be drawn, because they were thought of
    """
    chance = np.random.default_rng(seed)
    pools = {sae: _drawn(sae, taken, context, chance) for sae in sorted({arm.features[0].sae for arm in beside})}
    arms: list[TrialArm] = []
    for number in range(num):
        like = beside[number % len(beside)]
        length, rows = like.length(context), context.saes[like.features[0].sae].norms.row_norms
        drawn = (TrialArm((one,), (), (length / rows[one.number],)) for one in pools[like.features[0].sae])
        allowed = next((arm for arm in drawn if refusal(arm, context) is None), None)
        arms += [allowed] if allowed else []
    return arms


def _drawn(
    sae: str, taken: Set[FeatureId], context: SteeringContext, chance: np.random.Generator
) -> Iterator[FeatureId]:
    """Draw features of an SAE that can be controls, each once; those that are known to be active somewhere come first."""
    rows = context.saes[sae].norms.row_norms
    candidates = [FeatureId(sae, number) for number in chance.permutation(len(rows)).tolist() if rows[number]]
    for is_known in (True, False):
        for feature in candidates:
            if feature not in taken and (context.max_act(*feature) is not None) == is_known:
                yield feature
