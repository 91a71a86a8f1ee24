"""
Attribution of a token to features: each is taken away, and what becomes of the token is measured.

A shortlist is made without running anything twice: features that are active where the token is decided, by how strongly they
are, and by how well their decoder rows align with the token's logit. Every feature of it is then clamped to 0 at every token
of the context, in one batch of prefills.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from saeclamp.types import (
    Attribute,
    AttributedFeature,
    AttributedPair,
    AttributedToken,
    Attribution,
    Together,
)
from saeclamp.types.refusals import shown
from saeclamp_server.api.features import FeatureSearch
from saeclamp_server.api.features.attribution_effects import (
    AttributionTarget,
    JointEffects,
    SingleEffects,
    take_away_jointly,
    take_away_singly,
)
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
    tokenize_request,
)
from saeclamp_server.api.progress import ProgressCounter
from saeclamp_server.errors import InvalidRequestError
from saeclamp_server.steering import SteeringContext, check_sae_names
from saeclamp_server.threads import run_computation

MAX_ALIGNED = 4096
"""Features whose decoder rows are compared with the token's logit."""
CLAIM = (
    "Causal for this context: every change was measured by running the model with the feature clamped to 0 at every token "
    "of it that SAEs read."
)


async def attribute(
    request: Attribute,
    model: ModelClient,
    decoder: DecoderQueries,
    context: SteeringContext,
    search: FeatureSearch,
    counter: ProgressCounter,
) -> Attribution:
    """Answer `POST /v1/features/attribute`. Raises RequestError."""
    saes = check_sae_names(request.saes, context, "saes")
    counter.begin("reading the context")
    question = await _attribution_target(request, model)
    (text,) = await read_activations(model, context, [(question.prompt, question.path)], saes=saes)
    warnings = await _doubts(request, question, model)
    sums = await run_computation(sum_activations, text, include_template=True)
    tried = await _shortlist(text, sums, question, decoder, request.num_features)
    counter.begin("taking features away", 1 + 3 * len(tried))
    alone = await take_away_singly(tried, question, model, context)
    joint = await take_away_jointly(tried, alone, request.num_pairs, question, model, context, counter)
    return Attribution(
        target=_token(question.target, alone.unsteered, model),
        against=None if question.against is None else _token(question.against, alone.unsteered, model),
        position=len(question.prompt.ids),
        metric="logprob" if question.against is None else "logprob_difference",
        value=alone.base,
        data=_attributed_features(tried, text, alone, context, search),
        pairs=_attributed_pairs(tried, alone, joint),
        together=_together(tried, len(sums.keys), alone, joint),
        claim=CLAIM,
        warnings=warnings,
    )


def _attributed_features(
    tried: Sequence[FeatureId],
    text: TextActivations,
    alone: SingleEffects,
    context: SteeringContext,
    search: FeatureSearch,
) -> tuple[AttributedFeature, ...]:
    acts = dense_acts(text, tried)
    peaks = np.abs(acts).argmax(axis=0)
    return tuple(
        AttributedFeature(
            feature=str(tried[n]),
            sae=tried[n].sae,
            index=tried[n].number,
            name=context.name_of(*tried[n]),
            label=search.label(*tried[n]),
            description=search.description(*tried[n]),
            act=float(acts[peaks[n], n]),
            position=int(peaks[n]),
            change=alone.changes[n],
            predicted=alone.predicted[n],
        )
        for n in alone.order
    )


def _attributed_pairs(
    tried: Sequence[FeatureId], alone: SingleEffects, joint: JointEffects
) -> tuple[AttributedPair, ...]:
    return tuple(
        AttributedPair(
            features=(str(tried[one]), str(tried[other])),
            change=change,
            interaction=change - alone.changes[one] - alone.changes[other],
        )
        for (one, other), change in joint.of_pairs.items()
    )


def _together(tried: Sequence[FeatureId], num_active: int, alone: SingleEffects, joint: JointEffects) -> Together:
    return Together(
        num_features=len(tried),
        num_active=num_active,
        change=joint.of_all,
        sum_of_changes=sum(alone.changes),
        predicted=sum(alone.predicted),
        share_explained=_share_explained(alone.changes, alone.predicted),
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
        before = Prompt(prompt.ids[: request.position])
        return AttributionTarget(before, path, prompt.ids[request.position], against)
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
    outcome = await model.run(GenerateRequest(question.prompt.ids, logprobs_of=asked), question.path)
    logprobs = outcome.logprobs[0]
    return tuple(
        f"{path}: {text!r} was taken without a blank before it, and {f' {text}'!r} is likelier here (logprob "
        f"{logprobs[other]:.3f}, not {logprobs[taken]:.3f}): give that if it was meant."
        for path, text, taken, other in doubted
        if logprobs[other] > logprobs[taken]
    )


async def _shortlist(
    text: TextActivations, sums: TextSums, question: AttributionTarget, decoder: DecoderQueries, num: int
) -> list[FeatureId]:
    """Choose features by two rankings in turn: how active they are, and how active times how aligned with the logit."""
    active = [feature_of(key, text.saes) for key in sums.keys.tolist()]
    if len(active) <= num:
        return active
    # what is read last decides most, and what is read anywhere may be passed on
    strength = np.abs(sums.peak)
    last = (text.positions == len(text.prompt.ids) - 1) & (text.acts != 0)
    strength[np.searchsorted(sums.keys, text.keys[last])] += np.abs(text.acts[last])
    aligned = strength * np.abs(await _alignment(active, strength, question, decoder))
    rankings = [np.argsort(-by, kind="stable") for by in (strength, aligned)]
    in_turn = dict.fromkeys(int(number) for both in zip(*rankings, strict=True) for number in both)
    return [active[number] for number in islice(in_turn, num)]


async def _alignment(
    active: Sequence[FeatureId], strength: NDArray[np.float64], question: AttributionTarget, decoder: DecoderQueries
) -> NDArray[np.float64]:
    """Ask how well decoder rows are aligned with the logit, of the most active features: the engine waits meanwhile."""
    tokens = [question.target] + ([] if question.against is None else [question.against])
    aligned = np.zeros(len(active))
    strongest = np.argsort(-strength, kind="stable")[:MAX_ALIGNED].tolist()
    for sae in dict.fromkeys(feature.sae for feature in active):
        numbers = [number for number in strongest if active[number].sae == sae]
        rows = await decoder.alignment(sae, [active[number].number for number in numbers], tokens)
        if rows is not None:
            aligned[numbers] = [row[0] - (row[1] if len(row) > 1 else 0.0) for row in rows]
    return aligned


def _token(token: int, outcome: GenerateResult, model: ModelClient) -> AttributedToken:
    (text,) = model.token_texts([token])
    return AttributedToken(id=token, text=text, logprob=outcome.logprobs[0][token])


def _share_explained(changes: Sequence[float], predicted: Sequence[float]) -> float | None:
    total = sum(change**2 for change in changes)
    if not total:
        return None
    return 1 - sum((change - guess) ** 2 for change, guess in zip(changes, predicted, strict=True)) / total
