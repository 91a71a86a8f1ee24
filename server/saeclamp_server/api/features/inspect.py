"""Features that are active in a text or a conversation, token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from saeclamp.types import Aggregate, Inspect, InspectedFeature, InspectedToken, Inspection, TopFeature
from saeclamp_server.api.features import FeatureSearch
from saeclamp_server.api.features.text_activations import (
    FeatureId,
    TextActivations,
    dense_acts,
    feature_of,
    read_activations,
    sum_activations,
)
from saeclamp_server.api.model_client import ModelClient, tokenize_request
from saeclamp_server.steering import SteeringContext, check_sae_names, find_feature
from saeclamp_server.threads import run_computation

DEFAULT_TOP_K = 5


async def inspect(request: Inspect, model: ModelClient, context: SteeringContext, search: FeatureSearch) -> Inspection:
    """Answer `POST /v1/features/inspect`. Raises RequestError."""
    features = [_find(str(feature), context, number) for number, feature in enumerate(request.features)]
    top_k = request.top_k if request.top_k is not None else 0 if features else DEFAULT_TOP_K
    saes = check_sae_names(request.saes, context, "saes")
    wants_all = bool(top_k) or not features
    prompt, path = await tokenize_request(model, request.text, request.messages)
    if request.order == "tf_idf":
        await search.until_ready()  # densities stand in the labels
    (text,) = await read_activations(model, context, [(prompt, path)], features, saes if wants_all else ())
    return await run_computation(_inspection, text, request, features, top_k, model, context, search)


def _inspection(
    text: TextActivations,
    request: Inspect,
    features: Sequence[FeatureId],
    top_k: int,
    model: ModelClient,
    context: SteeringContext,
    search: FeatureSearch,
) -> Inspection:
    if features:
        shown, acts = [*features], text.named
    else:
        shown = _most_active(text, request, context, search)
        acts = dense_acts(text, shown)
    names = dict(zip(map(str, request.features), range(len(features)), strict=True))
    cut = "At some tokens more features are active than were read; the weakest were left out."
    return Inspection(
        tokens=_tokens(text, model, names, top_k, context),
        features=tuple(_summed_up(shown, acts, text.counted(request.include_template), context, search)),
        aggregate=request.aggregate,
        order=request.order,
        num_counted=int(text.counted(request.include_template).sum()),
        warnings=(cut,) if text.is_cut else (),
    )


def _most_active(
    text: TextActivations, request: Inspect, context: SteeringContext, search: FeatureSearch
) -> list[FeatureId]:
    """Choose features by what they do at tokens that count, the first by `aggregate` and `order` first."""
    sums = sum_activations(text, request.include_template)
    # the largest in the sense of the answer: of those that have either sign, the farthest from 0
    by = {"max": sums.peak, "mean": sums.mean, "frequency": sums.frequency}[request.aggregate]
    order = np.argsort(-np.abs(by), kind="stable")
    if request.order == "tf_idf":
        features = [feature_of(key, text.saes) for key in sums.keys.tolist()]
        scores = _tf_idf(np.abs(by), features, request.aggregate, context, search)
        order = order[np.argsort(-scores[order], kind="stable")]
    return [feature_of(key, text.saes) for key in sums.keys[order[: request.limit]].tolist()]


def _tf_idf(
    values: NDArray[np.float64],
    features: Sequence[FeatureId],
    aggregate: Aggregate,
    context: SteeringContext,
    search: FeatureSearch,
) -> NDArray[np.float64]:
    """
    Weigh activations by how unusual they are, as words are weighed by how few documents hold them (Spaerck Jones 1972).

    values: (num_features,), at least 0
    Returns (num_features,); -1 where the stored maximum or the density is not known.
    """
    max_acts = [1.0 if aggregate == "frequency" else context.max_act(*feature) for feature in features]
    densities = [search.density(*feature) for feature in features]
    return np.array(
        [
            value / max_act * -np.log(density) if max_act and density else -1.0
            for value, max_act, density in zip(values, max_acts, densities, strict=True)
        ]
    )


def _find(feature: str, context: SteeringContext, number: int) -> FeatureId:
    sae, index = find_feature(feature, context.saes, f"features[{number}]")
    return FeatureId(sae.name, index)


def _tokens(
    text: TextActivations, model: ModelClient, names: Mapping[str, int], top_k: int, context: SteeringContext
) -> tuple[InspectedToken, ...]:
    roles, template = text.prompt.roles(), text.prompt.is_template()
    return tuple(
        InspectedToken(
            position=position,
            id=text.prompt.ids[position],
            text=shown,
            bytes=raw,
            role=roles[position],
            template=template[position],
            read=bool(text.is_read[position]),
            features={name: float(text.named[position, number]) for name, number in names.items()}
            if text.is_read[position]
            else {},
            top=_strongest(text.strongest(position, top_k), context),
        )
        for position, (shown, raw) in enumerate(
            zip(model.token_texts(text.prompt.ids), model.token_bytes(text.prompt.ids), strict=True)
        )
    )


def _strongest(
    active: Mapping[str, Sequence[tuple[int, float]]], context: SteeringContext
) -> dict[str, tuple[TopFeature, ...]]:
    return {
        sae: tuple(TopFeature(index=index, name=context.name_of(sae, index), act=act) for index, act in rows)
        for sae, rows in active.items()
    }


def _summed_up(
    features: Sequence[FeatureId],
    acts: NDArray[np.float64],
    counted: NDArray[np.bool_],
    context: SteeringContext,
    search: FeatureSearch,
) -> list[InspectedFeature]:
    """acts: (num_tokens, num_features)"""
    positions = np.flatnonzero(counted)
    kept = acts[positions]
    if not len(positions):
        kept, positions = np.zeros((1, len(features))), np.zeros(1, np.int64)
    peaks = np.abs(kept).argmax(axis=0)  # those of AbsTopK have either sign
    return [
        InspectedFeature(
            feature=str(feature),
            sae=feature.sae,
            index=feature.number,
            name=context.name_of(*feature),
            label=search.label(*feature),
            description=search.description(*feature),
            max=float(column[peak]),
            mean=float(column.mean()),
            frequency=float((column != 0).mean()),
            density=search.density(*feature),
            position=int(positions[peak]) if column[peak] else None,
            max_act=context.max_act(*feature),
            acts=tuple(whole.tolist()),
        )
        for feature, column, peak, whole in zip(features, kept.T, peaks, acts.T, strict=True)
    ]
