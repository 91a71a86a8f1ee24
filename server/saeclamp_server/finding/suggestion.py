"""
From a wish to a small steering: features are thought of, tried on neutral questions, and judged by what the answers became.

Thought of by search (labels that say it) and by contrast (what differs between the model's own answers when it is asked for
it in the prompt and when it is not). Tried in one batch, at several strengths. Judged by how much nearer answers come to the
wish than unsteered ones, and by whether they still are text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, sqrt
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saeclamp.types import (
    Clamp,
    FeatureQuery,
    Steering,
    Suggest,
    SuggestedFeature,
    SuggestedPoint,
    Suggestion,
)
from saeclamp_server.calibration.prompts import read_prompts
from saeclamp_server.calibration.text import repetition
from saeclamp_server.errors import RequestError
from saeclamp_server.features import FeatureSearch
from saeclamp_server.finding.contrast import worth
from saeclamp_server.finding.reading import FeatureId, mentioned, read
from saeclamp_server.finding.significance import LEVEL, judge
from saeclamp_server.model import Model, Outcome, Prompt, Run, all_of, expected, run_all
from saeclamp_server.progress import ProgressCounter
from saeclamp_server.steering import Served, known_saes_named, resolve
from saeclamp_server.threads import computed, searched

NUM_QUESTIONS = 8
NUM_FOUND = 12
"""Features that each way of thinking of them may contribute."""
LEAST_GAIN = 0.03
MAX_PERPLEXITY = 2.5
MAX_REPETITION = 0.5
SAMPLING = {"temperature": 0, "repetition_penalty": 1.1}

WISHING = frozenset(
    """
    act always answer be behave express like more only please reply respond say sound speak talk talking tell use write
    writing
    """.split()  # noqa: SIM905
)
"""Words of a wish that say nothing of what is wished for."""

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class _Baseline:
    """Unsteered answers to the neutral questions, and what the wish sounds like."""

    prompts: Sequence[Prompt]
    similarity: Sequence[float]
    """Of each answer with the wish."""
    perplexity: float
    target: Rows
    """(width,), unit length: the wish, and what answers to it have that others have not."""


async def suggest(
    request: Suggest, model: Model, served: Served, search: FeatureSearch, counter: ProgressCounter
) -> Suggestion:
    """Answer `POST /v1/features/suggest`. Raises RequestError."""
    saes = known_saes_named(request.saes, served, "saes")
    if search.encoder is None:
        raise RequestError(f"Answers cannot be compared with a wish. {search.note or ''}".strip(), None)
    questions = read_prompts(None).texts[:NUM_QUESTIONS]
    plain = [await _asked(question, model) for question in questions]
    told = [await _asked(question, model, request.wish) for question in questions]
    counter.begin("answering neutral questions, with the wish and without")
    answers = await run_all(model, [(_answering(prompt, request), "wish") for prompt in (*plain, *told)])
    unsteered, prompted = answers[: len(plain)], answers[len(plain) :]
    baseline = await _baseline(request.wish, plain, unsteered, prompted, model, search)
    counter.begin("looking for features")
    thought_of = await _thought_of(request, saes, unsteered, prompted, model, served, search)
    tried, passed = _divided(thought_of, request.num_candidates, served)
    num_answers = len(tried) * len(request.strengths) * len(questions)
    counter.begin("trying features on neutral questions", num_answers * (request.max_tokens + 1))
    curves = await all_of(_curve(feature, request, baseline, model, served, search) for feature, _ in tried)
    return await _judged(request, tried, curves, passed, baseline, model, served, search)


def subject_of(wish: str) -> str:
    """Leave out of a wish the words that only say that it is one: features of the word "talk" are not what is wanted."""
    words = [word for word in wish.split() if word.strip(".,!?;:'\"").lower() not in WISHING]
    return " ".join(words) or wish


async def _asked(question: str, model: Model, wish: str | None = None) -> Prompt:
    system = [] if wish is None else [{"role": "system", "content": f"In every answer: {wish}."}]
    return await model.of_messages([*system, {"role": "user", "content": question}], "wish", answers=True)


def _answering(prompt: Prompt, request: Suggest, steering: Any = None) -> Run:
    return Run(prompt.ids, steering, request.max_tokens, SAMPLING)


async def _embedded(search: FeatureSearch, texts: Sequence[str]) -> Rows:
    assert search.encoder is not None, "it was asked for"
    rows: Rows = await computed(search.encoder.encode, texts)
    return rows


async def _baseline(
    wish: str,
    prompts: Sequence[Prompt],
    unsteered: Sequence[Outcome],
    prompted: Sequence[Outcome],
    model: Model,
    search: FeatureSearch,
) -> _Baseline:
    (wished,) = await _embedded(search, [wish])
    before, after = [await _embedded(search, [answer.text for answer in answers]) for answers in (unsteered, prompted)]
    # what both kinds of answers share is the questions, not the wish
    target = wished + after.mean(axis=0) - before.mean(axis=0)
    target /= np.linalg.norm(target)
    return _Baseline(prompts, (before @ target).tolist(), await _perplexity(prompts, unsteered, model), target)


async def _perplexity(prompts: Sequence[Prompt], answers: Sequence[Outcome], model: Model) -> float:
    """Of all answers' tokens together, as the unsteered model sees them."""
    seen = await expected(
        model, [(prompt.ids, answer.ids) for prompt, answer in zip(prompts, answers, strict=True)], "wish"
    )
    logprobs = [
        row[token]
        for answer, rows in zip(answers, seen, strict=True)
        for token, row in zip(answer.ids, rows, strict=True)
    ]
    return exp(-fmean(logprobs)) if logprobs else 1.0


async def _thought_of(
    request: Suggest,
    saes: Sequence[str],
    unsteered: Sequence[Outcome],
    prompted: Sequence[Outcome],
    model: Model,
    served: Served,
    search: FeatureSearch,
) -> dict[FeatureId, list[str]]:
    """Features, with how they were thought of; those that both ways found come first, then by turns."""
    query = FeatureQuery(query=subject_of(request.wish), sae=saes, limit=NUM_FOUND)
    found = await searched(search.find, query)
    by_search = [FeatureId(hit.sae, hit.index) for hit in found.data]
    texts = [answer.text for answer in (*prompted, *unsteered) if answer.text.strip()]
    num = sum(bool(answer.text.strip()) for answer in prompted)
    read_texts = await read(model, served, [(await model.of_text(text, "wish"), "wish") for text in texts], saes=saes)
    features = [*mentioned(read_texts)]
    values = np.array([worth(text, features, "mean", False) for text in read_texts])
    by_contrast: list[FeatureId] = []
    if 0 < num < len(texts) and features:
        judged = await computed(judge, values[:num], values[num:])
        order = np.lexsort((-judged.statistic, judged.p))
        by_contrast = [features[n] for n in order if judged.p[n] <= LEVEL and judged.statistic[n] > 0][:NUM_FOUND]
    ways = {"search": by_search, "contrast": by_contrast}
    ranks = {
        feature: [(way.index(feature), name) for name, way in ways.items() if feature in way]
        for feature in (*by_search, *by_contrast)
    }
    order_of = sorted(ranks, key=lambda feature: (-len(ranks[feature]), min(rank for rank, _ in ranks[feature])))
    return {feature: [name for _, name in ranks[feature]] for feature in order_of}


Thought = tuple[FeatureId, list[str]]


def _divided(
    thought_of: dict[FeatureId, list[str]], num: int, served: Served
) -> tuple[list[Thought], list[tuple[Thought, str]]]:
    """Choose which are tried, and say of the others why not."""
    tried: list[Thought] = []
    passed: list[tuple[Thought, str]] = []
    # what is known to steer is tried first
    notes = {feature: served.saes[feature.sae].features.get(feature.number) for feature in thought_of}
    for feature in sorted(thought_of, key=lambda one: (note := notes[one]) is None or note.clamp is None):
        thought = (feature, thought_of[feature])
        if served.max_act(*feature) is None:
            passed.append((thought, "It has no stored maximum activation, so strengths mean nothing for it."))
        elif len(tried) == num:
            passed.append((thought, f"{num} others were more promising."))
        else:
            tried.append(thought)
    return tried, passed


async def _curve(
    feature: FeatureId,
    request: Suggest,
    baseline: _Baseline,
    model: Model,
    served: Served,
    search: FeatureSearch,
) -> list[SuggestedPoint]:
    steerings = [resolve(_clamp(feature, strength), served) for strength in request.strengths]
    runs = [(_answering(prompt, request, steering), "wish") for steering in steerings for prompt in baseline.prompts]
    answers, num = await run_all(model, runs), len(baseline.prompts)
    parts = [answers[start : start + num] for start in range(0, len(answers), num)]
    return [
        await _point(strength, part, baseline, model, search)
        for strength, part in zip(request.strengths, parts, strict=True)
    ]


def _clamp(feature: FeatureId, strength: float) -> Steering:
    return Steering(interventions=(Clamp(feature=str(feature), value=strength),))


async def _point(
    strength: float, answers: Sequence[Outcome], baseline: _Baseline, model: Model, search: FeatureSearch
) -> SuggestedPoint:
    similarity = (await _embedded(search, [answer.text for answer in answers])) @ baseline.target
    gains = [float(own) - before for own, before in zip(similarity, baseline.similarity, strict=True)]
    perplexity = await _perplexity(baseline.prompts, answers, model) / baseline.perplexity
    repeated = fmean(repetition(answer.text) or 0.0 for answer in answers)
    # beyond two standard errors of the mean over questions
    is_gain = fmean(gains) > max(LEAST_GAIN, 2 * stdev(gains) / sqrt(len(gains)))
    return SuggestedPoint(
        strength=strength,
        gain=fmean(gains),
        perplexity=perplexity,
        repetition=repeated,
        works=is_gain and perplexity <= MAX_PERPLEXITY and repeated <= MAX_REPETITION,
    )


async def _judged(
    request: Suggest,
    tried: Sequence[Thought],
    curves: Sequence[Sequence[SuggestedPoint]],
    passed: Sequence[tuple[Thought, str]],
    baseline: _Baseline,
    model: Model,
    served: Served,
    search: FeatureSearch,
) -> Suggestion:
    bests = [
        max((point for point in curve if point.works), key=lambda point: point.gain, default=None) for curve in curves
    ]
    order = sorted(range(len(tried)), key=lambda n: -(best.gain if (best := bests[n]) else -1.0))
    chosen = order[0] if order and bests[order[0]] is not None else None

    def described(thought: Thought, curve: Sequence[SuggestedPoint], reason: str | None) -> SuggestedFeature:
        feature, found_by = thought
        return SuggestedFeature(
            feature=str(feature),
            name=served.name_of(*feature),
            label=search.label(*feature),
            description=search.description(*feature),
            output_score=search.output_score(*feature),
            found_by=tuple(found_by),
            curve=tuple(curve),
            reason=reason,
        )

    rejected = [described(tried[n], curves[n], _reason(curves[n], bests[n])) for n in order if n != chosen]
    alternatives = (*rejected, *(described(thought, (), reason) for thought, reason in passed))
    if chosen is None:
        note = "Nothing that was tried brings answers nearer to the wish and leaves them readable."
        return Suggestion(wish=request.wish, steering=None, alternatives=alternatives, note=note)
    best = bests[chosen]
    assert best is not None, "it was chosen for it"
    steering = _clamp(tried[chosen][0], best.strength)
    example = await model.run(_answering(baseline.prompts[0], request, resolve(steering, served)), "wish")
    return Suggestion(
        wish=request.wish,
        steering=steering.to_json(),
        chosen=described(tried[chosen], curves[chosen], None),
        best=best,
        example=example.text,
        alternatives=alternatives,
    )


def _reason(curve: Sequence[SuggestedPoint], best: SuggestedPoint | None) -> str:
    if best is not None:
        return f"It works, but another gains more than {best.gain:.3f}."
    if all(point.gain <= LEAST_GAIN for point in curve):
        return f"At no strength do answers come nearer to the wish by more than {LEAST_GAIN:g}."
    if any(point.perplexity <= MAX_PERPLEXITY and point.repetition <= MAX_REPETITION for point in curve):
        return "Where text stays readable, the gain is within what differs from question to question, or too small."
    return "At every strength the text falls apart."
