"""
Metrics of steered answers against unsteered ones to the same prompts.

Every metric is a mean over answers or tokens. Its bounds are those of the middle 95 % of 1,000 bootstrap draws of the
prompts: all answers to a prompt are drawn together, steered and unsteered alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from saeclamp_server.calibration.text_metrics import WordSet, distinct_2, repetition

DRAWS = 1000
BOUNDS = (2.5, 97.5)
"""Percentiles of the draws."""
SIMILAR_FROM = 95
"""Percentile of the unsteered answers' similarity, above which an answer counts as similar."""

Array = np.ndarray
Statistic = Callable[[Array], Array]
"""Function of draws, (num_draws, num_prompts) int numbers of prompts, that returns a metric of each, (num_draws,)."""


@dataclass(frozen=True)
class MeasuredAnswer:
    """An answer, and its likelihood under the unsteered model."""

    prompt: int
    """Index of the prompt."""
    text: str
    num_tokens: int
    nll: float
    """Negative log-likelihood of the answer's tokens under the unsteered model, in nats, summed."""
    seed: int | None = None
    """Seed of the sampling; None for a greedy answer."""
    dose: float | None = None
    """Mean norm of the edit as a share of the token's residual norm, from the receipt. None: unsteered."""


class Estimate(NamedTuple):
    """A metric and its bounds."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class AnswerMetrics:
    """Metrics of one strength under one decoding. Gains are differences to, and ratios are to, the unsteered answers'."""

    num_answers: int
    hit: Estimate | None
    """Share of answers that hold a word of the concept. None: no words are known."""
    hit_gain: Estimate | None
    similar: Estimate | None
    """Share of answers more similar to the examples than 95 % of the unsteered ones. None: no examples are known."""
    similar_gain: Estimate | None
    similarity_gain: Estimate | None
    """Gain of the mean cosine with the examples."""
    perplexity: float | None
    """Perplexity under the unsteered model, over all tokens of all answers. None where no answer holds a token."""
    perplexity_ratio: Estimate | None
    distinct_2: float | None
    """Mean over the answers of two or more words. None where there is none."""
    distinct_2_ratio: Estimate | None
    repetition: float | None
    """Mean over the answers that hold a word. None where there is none."""
    repetition_gain: Estimate | None
    dose: float | None

    def to_json(self) -> dict[str, Any]:
        """Return JSON for a file: metrics with bounds as [value, low, high]."""
        return {
            name: [round(part, 5) for part in value]
            if isinstance(value, Estimate)
            else round(value, 5)
            if isinstance(value, float)
            else value
            for name, value in vars(self).items()
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> AnswerMetrics:
        """Read what `to_json` wrote."""
        values: dict[str, Any] = {
            name: Estimate(*item) if isinstance(item, list) else item for name, item in value.items()
        }
        return cls(**values)


def compare(
    steered: Sequence[MeasuredAnswer],
    unsteered: Sequence[MeasuredAnswer],
    words: WordSet | None,
    similarity: Callable[[Sequence[str]], Array] | None,
) -> AnswerMetrics:
    """
    Measure answers against the unsteered answers to the same prompts. Unsteered answers may be measured against themselves.

    words:      the concept's; None where none are known
    similarity: computes texts' similarities to the feature's examples, (num_texts,); None where there are none
    """
    num_prompts = 1 + max(answer.prompt for answer in (*steered, *unsteered))
    # seeded, so that the same answers give the same bounds; the same draws for all metrics and for both sets of answers
    draws = np.random.default_rng(0).integers(num_prompts, size=(DRAWS, num_prompts))
    one, other = (
        _AnswerScores.from_answers(answers, num_prompts, words, similarity) for answers in (steered, unsteered)
    )
    hits = None if words is None else (one.mean("hit"), other.mean("hit"))
    perplexity = one.perplexity(), other.perplexity()
    pairs = one.mean("distinct_2"), other.mean("distinct_2")
    repeats = one.mean("repetition"), other.mean("repetition")
    similar = similarities = None
    if similarity is not None:
        bar = float(np.percentile(other.values["similarity"], SIMILAR_FROM))
        similar = one.share_above(bar), other.share_above(bar)
        similarities = one.mean("similarity"), other.mean("similarity")
    doses = [answer.dose for answer in steered if answer.dose is not None]
    return AnswerMetrics(
        num_answers=len(steered),
        hit=hits and _bounded(hits[0], draws),
        hit_gain=hits and _bounded(_gain(*hits), draws),
        similar=similar and _bounded(similar[0], draws),
        similar_gain=similar and _bounded(_gain(*similar), draws),
        similarity_gain=similarities and _bounded(_gain(*similarities), draws),
        perplexity=_value(perplexity[0], num_prompts),
        perplexity_ratio=_bounded(_ratio(*perplexity), draws),
        distinct_2=_value(pairs[0], num_prompts),
        distinct_2_ratio=_bounded(_ratio(*pairs), draws),
        repetition=_value(repeats[0], num_prompts),
        repetition_gain=_bounded(_gain(*repeats), draws),
        dose=sum(doses) / len(doses) if doses else None,
    )


@dataclass(frozen=True)
class _AnswerScores:
    """Metrics of single answers, one value per answer; NaN where an answer has none."""

    prompts: Array
    """(num_answers,) int, index of each answer's prompt"""
    num_prompts: int
    values: Mapping[str, Array]
    num_tokens: Array
    nll: Array

    @classmethod
    def from_answers(
        cls,
        answers: Sequence[MeasuredAnswer],
        num_prompts: int,
        words: WordSet | None,
        similarity: Callable[[Sequence[str]], Array] | None,
    ) -> _AnswerScores:
        texts = [answer.text for answer in answers]
        values = {"distinct_2": _array(map(distinct_2, texts)), "repetition": _array(map(repetition, texts))}
        if words is not None:
            values["hit"] = np.array([words.found_in(text) for text in texts], float)
        if similarity is not None:
            values["similarity"] = np.asarray(similarity(texts), float)
        return cls(
            np.array([answer.prompt for answer in answers]),
            num_prompts,
            values,
            np.array([answer.num_tokens for answer in answers], float),
            np.array([answer.nll for answer in answers], float),
        )

    def mean(self, name: str) -> Statistic:
        """Make the mean over the answers that have the metric."""
        return self._mean(self.values[name])

    def share_above(self, bar: float) -> Statistic:
        """Make the share of answers that are more similar than `bar`."""
        return self._mean((self.values["similarity"] > bar).astype(float))

    def perplexity(self) -> Statistic:
        """Make the perplexity of all answers' tokens together."""
        nll, count = self._by_prompt(self.nll), self._by_prompt(self.num_tokens)
        return lambda draws: np.exp(_divide(nll[draws].sum(axis=1), count[draws].sum(axis=1)))

    def _mean(self, values: Array) -> Statistic:
        known = ~np.isnan(values)
        total, count = self._by_prompt(np.where(known, values, 0)), self._by_prompt(known.astype(float))
        return lambda draws: _divide(total[draws].sum(axis=1), count[draws].sum(axis=1))

    def _by_prompt(self, values: Array) -> Array:
        """Sum over each prompt's answers: (num_answers,) -> (num_prompts,)."""
        return np.bincount(self.prompts, values, self.num_prompts)


def _gain(one: Statistic, other: Statistic) -> Statistic:
    return lambda draws: one(draws) - other(draws)


def _ratio(one: Statistic, other: Statistic) -> Statistic:
    return lambda draws: _divide(one(draws), other(draws))


def _value(statistic: Statistic, num_prompts: int) -> float | None:
    value = float(statistic(np.arange(num_prompts)[None])[0])
    return value if math.isfinite(value) else None


def _bounded(statistic: Statistic, draws: Array) -> Estimate | None:
    value = _value(statistic, draws.shape[1])
    if value is None:
        return None
    drawn = statistic(draws)
    # a draw may hold no answer that has the metric
    low, high = np.percentile(drawn[np.isfinite(drawn)], BOUNDS)
    return Estimate(value, float(low), float(high))


def _divide(one: Array, other: Array) -> Array:
    """Divide, with NaN where the divisor is 0."""
    quotient: Array = np.divide(one, other, out=np.full_like(one, np.nan), where=other != 0)
    return quotient


def _array(values: Iterable[float | None]) -> Array:
    return np.array([math.nan if value is None else value for value in values], float)
