"""
Attribution of a token to features: each is taken away, and what becomes of the token is measured.

A shortlist is made without running anything twice: features that are active where the token is decided, by how strongly they
are, and by how well their decoder rows align with the token's logit. Every feature of it is then clamped to 0 at every token
of the context, in one batch of prefills.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from saeclamp.types import (
    Ablate,
    Attribute,
    AttributedFeature,
    AttributedPair,
    AttributedToken,
    Attribution,
    Operation,
    Scale,
    Steering,
    Together,
)
from saeclamp.types.refusals import shown
from saeclamp_server.api.features import FeatureSearch
from saeclamp_server.api.features.text_activations import (
    FeatureId,
    TextActivations,
    TextSums,
    dense_acts,
    feature_of,
    read_activations,
    sum_activations,
)
from saeclamp_server.api.model_client import (
    DecoderQueries,
    GenerateRequest,
    GenerateResult,
    ModelClient,
    Prompt,
    generate_all,
    tokenize_request,
)
from saeclamp_server.api.progress import ProgressCounter
from saeclamp_server.errors import InvalidRequestError
from saeclamp_server.steering import SteeringContext, check_sae_names, resolve
from saeclamp_server.threads import run_computation

STEP = 0.125
"""Share by which activations are scaled up and down for the linear prediction."""
MAX_ALIGNED = 4096
"""Features whose decoder rows are compared with the token's logit."""
CLAIM = (
    "Causal for this context: every change was measured by running the model with the feature clamped to 0 at every token "
    "of it that SAEs read."
)


@dataclass(frozen=True)
class AttributionTarget:
    """A context, and the tokens whose likelihood behind it is explained."""

    context: Prompt
    path: str
    target: int
    against: int | None

    def run(self, edits: Sequence[Operation], served: SteeringContext) -> tuple[GenerateRequest, str]:
        steering = resolve(Steering(interventions=tuple(edits)), served) if edits else None
        tokens = (self.target,) if self.against is None else (self.target, self.against)
        return GenerateRequest(self.context.ids, steering, logprobs_of=tokens), self.path

    def value(self, outcome: GenerateResult) -> float:
        logprobs = outcome.logprobs[0]
        return logprobs[self.target] - (0.0 if self.against is None else logprobs[self.against])


async def attribute(
    request: Attribute,
    model: ModelClient,
    directions: DecoderQueries,
    served: SteeringContext,
    search: FeatureSearch,
    counter: ProgressCounter,
) -> Attribution:
    """Answer `POST /v1/features/attribute`. Raises RequestError."""
    saes = check_sae_names(request.saes, served, "saes")
    counter.begin("reading the context")
    question = await _attribution_target(request, model)
    (text,) = await read_activations(model, served, [(question.context, question.path)], saes=saes)
    warnings = await _doubts(request, question, model)
    sums = await run_computation(sum_activations, text, include_template=True)
    tried = await _shortlist(text, sums, question, directions, request.num_features)
    counter.begin("taking features away", 1 + 3 * len(tried))
    changes, predicted, unsteered = await _singly(tried, question, model, served)
    order = sorted(range(len(tried)), key=lambda number: -abs(changes[number]))
    pairs = [*islice(_pairs(order), request.num_pairs)]
    together = [[tried[number] for number in pair] for pair in pairs] + ([tried] if tried else [])
    runs = [question.run([_ablate(feature) for feature in features], served) for features in together]
    base = question.value(unsteered)
    counter.begin("taking features away together", len(runs))
    joint = [question.value(outcome) - base for outcome in await generate_all(model, runs)]
    acts = dense_acts(text, tried)
    peaks = np.abs(acts).argmax(axis=0)
    return Attribution(
        target=_token(question.target, unsteered, model),
        against=None if question.against is None else _token(question.against, unsteered, model),
        position=len(question.context.ids),
        metric="logprob" if question.against is None else "logprob_difference",
        value=base,
        data=tuple(
            AttributedFeature(
                feature=str(tried[n]),
                sae=tried[n].sae,
                index=tried[n].number,
                name=served.name_of(*tried[n]),
                label=search.label(*tried[n]),
                description=search.description(*tried[n]),
                act=float(acts[peaks[n], n]),
                position=int(peaks[n]),
                change=changes[n],
                predicted=predicted[n],
            )
            for n in order
        ),
        pairs=tuple(
            AttributedPair(
                features=(str(tried[one]), str(tried[other])),
                change=change,
                interaction=change - changes[one] - changes[other],
            )
            for (one, other), change in zip(pairs, joint, strict=False)  # the last of `joint` is all of them together
        ),
        together=Together(
            num_features=len(tried),
            num_active=len(sums.keys),
            change=joint[-1] if tried else 0.0,
            sum_of_changes=sum(changes),
            predicted=sum(predicted),
            share_explained=_share_explained(changes, predicted),
        ),
        claim=CLAIM,
        warnings=warnings,
    )


async def _attribution_target(request: Attribute, model: ModelClient) -> AttributionTarget:
    prompt, path = await tokenize_request(model, request.text, request.messages, answers=request.position is None)
    against = None if request.against is None else _token_id(request.against, model, "against")
    if request.position is not None:
        if request.position >= len(prompt.ids):
            raise InvalidRequestError(
                f"position: there are {len(prompt.ids)} tokens, so positions end at {len(prompt.ids) - 1}, and "
                f"{shown(request.position)} is none.",
                "position",
            )
        context = Prompt(prompt.ids[: request.position])
        return AttributionTarget(context, path, prompt.ids[request.position], against)
    if request.target is not None:
        return AttributionTarget(prompt, path, _token_id(request.target, model, "target"), against)
    likeliest = await model.run(GenerateRequest(prompt.ids), path)
    return AttributionTarget(prompt, path, likeliest.ids[0], against)


def _token_id(token: str | int, model: ModelClient, path: str) -> int:
    ids = model.token_ids(token) if isinstance(token, str) else [token]
    if isinstance(token, int) and token >= model.num_tokens:
        raise InvalidRequestError(f"{path}: token ids end at {model.num_tokens - 1}, and {shown(token)} is none.", path)
    if len(ids) != 1:
        parts = ", ".join(map(repr, model.token_texts(ids)))
        meant = "" if _after_a_blank(token, model) is None else f" Did you mean {f' {token}'!r}, which is one?"
        raise InvalidRequestError(f"{path}: {token!r} is {len(ids)} tokens ({parts}), not one.{meant}", path)
    return ids[0]


def _after_a_blank(token: str | int | None, model: ModelClient) -> int | None:
    """Find the one token that a text is behind a blank; None where it has one itself, or is several."""
    if not isinstance(token, str) or token[:1].isspace():
        return None
    ids = model.token_ids(f" {token}")
    return ids[0] if len(ids) == 1 else None


async def _doubts(request: Attribute, question: AttributionTarget, model: ModelClient) -> tuple[str, ...]:
    """
    Say where a token was probably meant with the blank before it, which most tokenizers make a part of the word.

    Which of both follows is not told by the text alone: behind a chat template's header no blank does.
    """
    given = (("target", request.target, question.target), ("against", request.against, question.against))
    doubted = [
        (path, text, taken, other)
        for path, text, taken in given
        if taken is not None and (other := _after_a_blank(text, model)) not in (None, taken)
    ]
    if not doubted:
        return ()
    asked = tuple({token: None for _, _, taken, other in doubted for token in (taken, other)})
    outcome = await model.run(GenerateRequest(question.context.ids, logprobs_of=asked), question.path)
    logprobs = outcome.logprobs[0]
    return tuple(
        f"{path}: {text!r} was taken without a blank before it, and {f' {text}'!r} is likelier here (logprob "
        f"{logprobs[other]:.3f}, not {logprobs[taken]:.3f}): give that if it was meant."
        for path, text, taken, other in doubted
        if logprobs[other] > logprobs[taken]
    )


async def _shortlist(
    text: TextActivations, sums: TextSums, question: AttributionTarget, directions: DecoderQueries, num: int
) -> list[FeatureId]:
    """Choose features by two rankings in turn: how active they are, and how active times how aligned with the logit."""
    active = [feature_of(key, text.saes) for key in sums.keys.tolist()]
    if len(active) <= num:
        return active
    # what is read last decides most, and what is read anywhere may be passed on
    strength = np.abs(sums.peak)
    last = (text.positions == len(text.prompt.ids) - 1) & (text.acts != 0)
    strength[np.searchsorted(sums.keys, text.keys[last])] += np.abs(text.acts[last])
    aligned = strength * np.abs(await _alignment(active, strength, question, directions))
    rankings = [np.argsort(-by, kind="stable") for by in (strength, aligned)]
    in_turn = dict.fromkeys(int(number) for both in zip(*rankings, strict=True) for number in both)
    return [active[number] for number in islice(in_turn, num)]


async def _alignment(
    active: Sequence[FeatureId], strength: NDArray[np.float64], question: AttributionTarget, directions: DecoderQueries
) -> NDArray[np.float64]:
    """Ask how well decoder rows are aligned with the logit, of the most active features: the engine waits meanwhile."""
    tokens = [question.target] + ([] if question.against is None else [question.against])
    aligned = np.zeros(len(active))
    strongest = np.argsort(-strength, kind="stable")[:MAX_ALIGNED].tolist()
    for sae in dict.fromkeys(feature.sae for feature in active):
        numbers = [number for number in strongest if active[number].sae == sae]
        rows = await directions.alignment(sae, [active[number].number for number in numbers], tokens)
        if rows is not None:
            aligned[numbers] = [row[0] - (row[1] if len(row) > 1 else 0.0) for row in rows]
    return aligned


async def _singly(
    tried: Sequence[FeatureId], question: AttributionTarget, model: ModelClient, served: SteeringContext
) -> tuple[list[float], list[float], GenerateResult]:
    """Take each feature away, and scale it a little; return changes, linear predictions, and the unsteered outcome."""
    edits: list[list[Operation]] = [[]]
    edits += [[_ablate(feature)] for feature in tried]
    edits += [[_scale(feature, factor)] for factor in (1 - STEP, 1 + STEP) for feature in tried]
    unsteered, *outcomes = await generate_all(model, [question.run(edit, served) for edit in edits])
    base, values, num = question.value(unsteered), [question.value(outcome) for outcome in outcomes], len(tried)
    changes = [value - base for value in values[:num]]
    # central differences: the error of one-sided ones is of first order in the step
    slopes = [(more - less) / (2 * STEP) for less, more in zip(values[num : 2 * num], values[2 * num :], strict=True)]
    return changes, [-slope for slope in slopes], unsteered


def _pairs(order: Sequence[int]) -> Iterable[tuple[int, int]]:
    """Yield pairs of the features that matter most, those of the first ones first."""
    return (
        (one, other) for last in range(1, len(order)) for one, other in ((order[n], order[last]) for n in range(last))
    )


def _ablate(feature: FeatureId) -> Ablate:
    return Ablate(feature=str(feature), tokens="prompt")


def _scale(feature: FeatureId, factor: float) -> Scale:
    return Scale(feature=str(feature), factor=factor, tokens="prompt")


def _token(token: int, outcome: GenerateResult, model: ModelClient) -> AttributedToken:
    (text,) = model.token_texts([token])
    return AttributedToken(id=token, text=text, logprob=outcome.logprobs[0][token])


def _share_explained(changes: Sequence[float], predicted: Sequence[float]) -> float | None:
    total = sum(change**2 for change in changes)
    if not total:
        return None
    return 1 - sum((change - guess) ** 2 for change, guess in zip(changes, predicted, strict=True)) / total
