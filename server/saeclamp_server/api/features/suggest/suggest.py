"""
From a wish to a small steering: features are thought of, tried on neutral questions, and the best of them put to the test.

Thought of by search (labels that say it) and by contrast (what differs between the model's own answers when it is asked for
it in the prompt and when it is not). Screened at several strengths on a few questions, to see what deserves a test. Tested,
alone and in pairs, on other questions, against unsteered answers and against random features that move the stream as far
(`superiority_test`); no answer that helped to choose the target or the steering takes part in its test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from saeclamp.types import Suggest, Suggestion
from saeclamp_server.api.features import FeatureSearch
from saeclamp_server.api.features.suggest.candidates import find_candidates, subject_of
from saeclamp_server.api.features.suggest.questions import FOR_SCREENING, FOR_TARGET, FOR_TEST
from saeclamp_server.api.features.suggest.screening import ScreenedArm, finalists
from saeclamp_server.api.features.suggest.superiority_test import (
    LEAST_CONTROLS,
    LEVEL,
    judge_by_baseline,
    judge_superiority,
)
from saeclamp_server.api.features.suggest.trials import ArmAnswers, TrialArm, Trials, control_arms, refusal
from saeclamp_server.api.features.suggest.verdict import Attempt, FeatureCandidate, Finalist, verdict
from saeclamp_server.api.features.text_activations import FeatureId
from saeclamp_server.api.model_client import ModelClient, Prompt
from saeclamp_server.api.progress import ProgressCounter
from saeclamp_server.errors import RequestError
from saeclamp_server.steering import SteeringContext, check_sae_names

NUM_CONTROLS = 12
NUM_READ = 8
"""Screened clamps whose answers are checked for still being text: those that gain most."""


async def suggest(
    request: Suggest, model: ModelClient, context: SteeringContext, search: FeatureSearch, counter: ProgressCounter
) -> Suggestion:
    """Answer `POST /v1/features/suggest`. Raises RequestError."""
    saes = check_sae_names(request.saes, context, "saes")
    if search.encoder is None:
        raise RequestError(f"Answers cannot be compared with a wish. {search.note or ''}".strip(), None)
    trials = Trials(model, context, search, request.max_tokens, request.seed)
    num_tokens = request.max_tokens + 1

    counter.begin("answering neutral questions, with the wish and without", 2 * len(FOR_TARGET) * num_tokens)
    plain, told = [[await _asked(one, model, wish) for one in FOR_TARGET] for wish in (None, request.wish)]
    (unsteered,), (prompted,) = await trials.answered(plain, [None]), await trials.answered(told, [None])
    before, after = await trials.embedded(unsteered), await trials.embedded(prompted)
    (wished,) = await trials.sentences([subject_of(request.wish)])
    # what both kinds of answers share is the questions, not the wish
    target = wished + after.mean(axis=0) - before.mean(axis=0)
    trials.target = target / np.linalg.norm(target)

    counter.begin("looking for features")
    ideas = await find_candidates(request.wish, saes, unsteered, prompted, model, context, search)
    tried, passed = _divided(ideas, request, context)
    arms = [arm for _, some in tried for arm in some]

    counter.begin("trying features on a few questions", (len(arms) + 1) * len(FOR_SCREENING) * num_tokens)
    screened = await _screened(arms, trials)
    best = [arm for arm in finalists(screened) if refusal(arm, context) is None]
    controls = control_arms(NUM_CONTROLS, best, ideas.keys(), context, request.seed) if best else []
    attempt = Attempt(tried, passed, screened, best)
    if len(controls) >= LEAST_CONTROLS:
        counter.begin("testing the best of them", (len(best) + 1) * len(FOR_TEST) * num_tokens)
        await _test(attempt, controls, trials, counter)
    return verdict(request, attempt, context, search)


async def _asked(question: str, model: ModelClient, wish: str | None = None) -> Prompt:
    system = [] if wish is None else [{"role": "system", "content": f"In every answer: {wish}."}]
    return await model.from_messages([*system, {"role": "user", "content": question}], "wish", answers=True)


def _divided(
    ideas: Mapping[FeatureId, Sequence[str]], request: Suggest, context: SteeringContext
) -> tuple[list[tuple[FeatureCandidate, list[TrialArm]]], list[tuple[FeatureCandidate, str]]]:
    """Choose which are tried, and how strongly, and say of the others why not."""
    tried: list[tuple[FeatureCandidate, list[TrialArm]]] = []
    passed: list[tuple[FeatureCandidate, str]] = []
    # what is known to steer is tried first
    notes = {feature: context.saes[feature.sae].entry.features.get(feature.number) for feature in ideas}
    for feature in sorted(ideas, key=lambda one: (note := notes[one]) is None or note.clamp is None):
        idea, max_act = FeatureCandidate(feature, tuple(ideas[feature])), context.max_act(*feature)
        if max_act is None:
            passed.append((idea, "It has no stored maximum activation, so strengths mean nothing for it."))
        elif len(tried) == request.num_candidates:
            passed.append((idea, f"{request.num_candidates} others were more promising."))
        else:
            arms = [TrialArm((feature,), (strength,), (strength * max_act,)) for strength in request.strengths]
            refusals = [refusal(arm, context) for arm in arms]
            if all(refusals):
                passed.append((idea, str(refusals[0])))
            else:
                tried.append((idea, [arm for arm, why in zip(arms, refusals, strict=True) if why is None]))
    return tried, passed


async def _screened(arms: Sequence[TrialArm], trials: Trials) -> list[ScreenedArm]:
    """Try clamps on a few questions, largest gain first; of those that gain most, see whether the answers still are text."""
    prompts = [await _asked(one, trials.model) for one in FOR_SCREENING]
    unsteered, *steered = await trials.compared(prompts, [None, *arms])
    gains = [_gain(answers, unsteered) for answers in steered]
    order = sorted(range(len(arms)), key=lambda n: -gains[n])
    worth_reading = [n for n in order if gains[n] > 0][:NUM_READ]
    usual = await trials.perplexity(unsteered) if worth_reading else 1.0
    return [
        ScreenedArm(
            arms[n],
            gains[n],
            await trials.perplexity(steered[n]) / usual if n in worth_reading else None,
            steered[n].repetition,
        )
        for n in order
    ]


def _gain(answers: ArmAnswers, unsteered: ArmAnswers) -> float:
    return float((answers.similarity - unsteered.similarity).mean())


async def _test(attempt: Attempt, controls: Sequence[TrialArm], trials: Trials, counter: ProgressCounter) -> None:
    """
    Compare the finalists with unsteered answers, on questions that are new to all of them, and with the control arm.

    The control arm is most of the work, so it is asked only where something gains more than chance does.
    """
    prompts = [await _asked(one, trials.model) for one in FOR_TEST]
    unsteered, *steered = await trials.compared(prompts, [None, *attempt.finalists])
    num = len(steered)
    gains = [answers.similarity - unsteered.similarity for answers in steered]
    judged = [judge_by_baseline(some, num) for some in gains]
    if any(one.p <= LEVEL for one in judged):
        counter.begin("testing random features", len(controls) * len(prompts) * (trials.max_tokens + 1))
        random = await trials.compared(prompts, controls)
        of_controls = np.stack([answers.similarity - unsteered.similarity for answers in random])
        attempt.controls = [(arm, float(row.mean())) for arm, row in zip(controls, of_controls, strict=True)]
        judged = [judge_superiority(some, of_controls, num, attempt.num_tried) for some in gains]
    usual = await trials.perplexity(unsteered)
    attempt.tested = [
        Finalist(arm, one, await trials.perplexity(answers) / usual, answers.repetition, answers.outcomes[0].text)
        for arm, one, answers in zip(attempt.finalists, judged, steered, strict=True)
    ]
