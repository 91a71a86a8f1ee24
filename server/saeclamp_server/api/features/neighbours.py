"""Neighbours of features: those whose decoder rows point the same way."""

from __future__ import annotations

from saeclamp.types import Neighbour, Neighbourhood, Neighbourhoods, NeighboursQuery
from saeclamp_server.api.features import FeatureSearch
from saeclamp_server.api.model_client import DecoderQueries
from saeclamp_server.steering import SteeringContext, find_feature


async def neighbours(
    request: NeighboursQuery, decoder: DecoderQueries, context: SteeringContext, search: FeatureSearch
) -> Neighbourhoods:
    """Answer `POST /v1/features/neighbours`. Raises RequestError."""
    found = [find_feature(feature, context.saes, f"features[{n}]") for n, feature in enumerate(request.features)]
    by_sae: dict[str, list[int]] = {}
    for sae, index in found:
        by_sae.setdefault(sae.name, []).append(index)
    near = {
        (name, index): row
        for name, indices in by_sae.items()
        for index, row in zip(indices, await decoder.nearest(name, indices, request.limit), strict=True)
    }
    data = tuple(
        Neighbourhood(
            feature=f"{sae.name}/{index}",
            name=context.name_of(sae.name, index),
            neighbours=tuple(
                Neighbour(
                    feature=f"{sae.name}/{other}",
                    name=context.name_of(sae.name, other),
                    label=search.label(sae.name, other),
                    description=search.description(sae.name, other),
                    cosine=cosine,
                )
                for other, cosine in near[sae.name, index]
            ),
        )
        for sae, index in found
    )
    return Neighbourhoods(data=data)
