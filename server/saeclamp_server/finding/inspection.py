"""Which features are active in a text or a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from saeclamp.types import Inspect, InspectedFeature, InspectedToken, Inspection, TopFeature
from saeclamp_server.features import FeatureSearch
from saeclamp_server.finding.reading import NUM_ACTIVE, Activations, FeatureId, matrix, mentioned, read
from saeclamp_server.model import Model, prompt_of
from saeclamp_server.steering import Served, find, known_saes_named

DEFAULT_TOP_K = 5


async def inspect(request: Inspect, model: Model, served: Served, search: FeatureSearch) -> Inspection:
    """Answer `POST /v1/features/inspect`. Raises RequestError."""
    features = [_find(str(feature), served, number) for number, feature in enumerate(request.features)]
    top_k = request.top_k if request.top_k is not None else 0 if features else DEFAULT_TOP_K
    saes = known_saes_named(request.saes, served, "saes")
    wants_all = bool(top_k) or not features
    prompt, path = await prompt_of(model, request.text, request.messages)
    (text,) = await read(model, served, [(prompt, path)], features, saes if wants_all else ())
    if features:
        shown, acts = features, text.named
    else:
        shown = [*mentioned([text])]
        acts = matrix(text, shown)
    summed = _summed_up(shown, acts, text.counted(request.include_template), served, search)
    if not features:
        summed.sort(key=lambda one: -abs(getattr(one, request.aggregate)))
        summed = [one for one in summed if one.position is not None][: request.limit]
    numbers = {str(feature): number for number, feature in enumerate(shown)}
    names = dict(zip(map(str, request.features), range(len(features)), strict=True))
    cut = f"At some tokens more than {NUM_ACTIVE} features are active; the weakest were not read."
    return Inspection(
        tokens=_tokens(text, model, names, top_k, served),
        features=tuple(
            one.model_copy(update={"acts": tuple(acts[:, numbers[one.feature]].tolist())}) for one in summed
        ),
        aggregate=request.aggregate,
        num_counted=int(text.counted(request.include_template).sum()),
        warnings=(cut,) if text.is_cut else (),
    )


def _find(feature: str, served: Served, number: int) -> FeatureId:
    sae, index = find(feature, served.saes, f"features[{number}]")
    return FeatureId(sae.name, index)


def _tokens(
    text: Activations, model: Model, names: Mapping[str, int], top_k: int, served: Served
) -> tuple[InspectedToken, ...]:
    roles, template = text.prompt.roles(), text.prompt.is_template()
    return tuple(
        InspectedToken(
            position=position,
            id=text.prompt.ids[position],
            text=shown,
            role=roles[position],
            template=template[position],
            read=bool(text.is_read[position]),
            features={name: float(text.named[position, number]) for name, number in names.items()}
            if text.is_read[position]
            else {},
            top=_strongest(text.active[position], top_k, served),
        )
        for position, shown in enumerate(model.token_texts(text.prompt.ids))
    )


def _strongest(active: Mapping[FeatureId, float], top_k: int, served: Served) -> dict[str, tuple[TopFeature, ...]]:
    by_sae: dict[str, list[TopFeature]] = {}
    for (sae, index), act in active.items():
        shown = by_sae.setdefault(sae, [])
        if len(shown) < top_k:
            shown.append(TopFeature(index=index, name=served.name_of(sae, index), act=act))
    return {sae: tuple(shown) for sae, shown in by_sae.items() if shown}


def _summed_up(
    features: Sequence[FeatureId],
    acts: NDArray[np.float64],
    counted: NDArray[np.bool_],
    served: Served,
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
            name=served.name_of(*feature),
            label=search.label(*feature),
            description=search.description(*feature),
            max=float(column[peak]),
            mean=float(column.mean()),
            frequency=float((column != 0).mean()),
            position=int(positions[peak]) if column[peak] else None,
            max_act=served.max_act(*feature),
        )
        for feature, column, peak in zip(features, kept.T, peaks, strict=True)
    ]
