"""`/v1/saes` and `/v1/features`: the loaded SAEs, looking for features, and what is known of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from fastapi import Query, Request, Response

from saeclamp.types import (
    Attribute,
    Attribution,
    Contrast,
    Contrasted,
    Derive,
    DerivedVector,
    FeatureHits,
    FeatureQuery,
    Inspect,
    Inspection,
    Neighbourhoods,
    NeighboursQuery,
    StoredFeature,
    StoredSAE,
    StoredSAEs,
    Suggest,
    Suggestion,
)
from saeclamp_server.api.event_stream import PROGRESS, answer_long
from saeclamp_server.api.features.attribute import attribute
from saeclamp_server.api.features.contrast import contrast
from saeclamp_server.api.features.derive import derive
from saeclamp_server.api.features.inspect import inspect
from saeclamp_server.api.features.neighbours import neighbours
from saeclamp_server.api.features.sae_info import feature_info, sae_info
from saeclamp_server.api.features.suggest.suggest import suggest
from saeclamp_server.api.state import state_of
from saeclamp_server.api.strict_route import strict_router
from saeclamp_server.errors import RequestError, UnknownSAEError
from saeclamp_server.served_sae import ServedSAE
from saeclamp_server.steering import find_feature
from saeclamp_server.threads import run_search

router = strict_router(ends_with_client=True)


@router.get("/v1/saes")
async def list_saes(request: Request) -> StoredSAEs:
    """List the loaded SAEs."""
    return StoredSAEs(data=tuple(sae_info(sae) for sae in _served_saes(request).values()))


@router.get("/v1/saes/{sae}")
async def get_sae(request: Request, sae: str) -> StoredSAE:
    """Look up one SAE."""
    saes = _served_saes(request)
    if sae not in saes:
        error = UnknownSAEError(sae, saes, "sae")
        error.status = 404
        raise error
    return sae_info(saes[sae])


@router.get("/v1/features")
async def find_features(request: Request, query: Annotated[FeatureQuery, Query()]) -> FeatureHits:
    """Look for features by words and by meaning, or list them."""
    for name in query.sae:
        if name not in _served_saes(request):
            raise UnknownSAEError(name, _served_saes(request), "sae")
    search = state_of(request.app).search
    await search.until_ready()
    return await run_search(search.find, query)


@router.get("/v1/features/{sae}/{feature}")
async def get_feature(request: Request, sae: str, feature: str) -> StoredFeature:
    """Look up all that is known of a feature, by its index or its name in the feature book."""
    context = state_of(request.app).context
    try:
        entry, index = find_feature(f"{sae}/{feature}", context.saes, "feature")
    except RequestError as exc:
        exc.status = 404
        raise

    def described() -> StoredFeature:
        return feature_info(context.saes[entry.name], index, context.describe)

    return await run_search(described)


def _served_saes(request: Request) -> Mapping[str, ServedSAE]:
    return state_of(request.app).context.saes


@router.post("/v1/features/inspect", response_model=Inspection)
async def inspect_features(body: Inspect, request: Request) -> Response:
    """Say which features are active in a text or a conversation."""
    state = state_of(request.app)
    return await answer_long(request, lambda model, counter: inspect(body, model, state.context, state.search))


@router.post("/v1/features/contrast", response_model=Contrasted, responses=PROGRESS)
async def contrast_features(body: Contrast, request: Request) -> Response:
    """Say which features tell two sets of texts apart."""
    state = state_of(request.app)
    return await answer_long(
        request, lambda model, counter: contrast(body, model, state.context, state.search, counter)
    )


@router.post("/v1/features/attribute", response_model=Attribution, responses=PROGRESS)
async def attribute_token(body: Attribute, request: Request) -> Response:
    """Say which features caused a token, by taking them away."""
    state = state_of(request.app)
    return await answer_long(
        request, lambda model, counter: attribute(body, model, state.decoder, state.context, state.search, counter)
    )


@router.post("/v1/vectors/derive", response_model=DerivedVector, responses=PROGRESS)
async def derive_vector(body: Derive, request: Request) -> Response:
    """Make a vector of what tells two sets of texts apart."""
    state = state_of(request.app)
    return await answer_long(
        request, lambda model, counter: derive(body, model, state.vectors, state.prompt_means, counter)
    )


@router.post("/v1/features/neighbours", response_model=Neighbourhoods)
async def neighbouring_features(body: NeighboursQuery, request: Request) -> Response:
    """Say which features' decoder rows point the same way."""
    state = state_of(request.app)
    return await answer_long(
        request, lambda model, counter: neighbours(body, state.decoder, state.context, state.search)
    )


@router.post("/v1/features/suggest", response_model=Suggestion, responses=PROGRESS)
async def suggest_steering(body: Suggest, request: Request) -> Response:
    """Propose a small steering for a wish, tested against unsteered answers and random features, or say that none works."""
    state = state_of(request.app)
    return await answer_long(request, lambda model, counter: suggest(body, model, state.context, state.search, counter))
