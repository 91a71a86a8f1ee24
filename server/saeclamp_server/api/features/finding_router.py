"""`POST /v1/features/...`: finding features by what the model does with a text."""

from __future__ import annotations

from fastapi import Request, Response

from saeclamp.types import (
    Attribute,
    Attribution,
    Contrast,
    Contrasted,
    Derive,
    DerivedVector,
    Inspect,
    Inspection,
    Neighbourhoods,
    NeighboursQuery,
    Suggest,
    Suggestion,
)
from saeclamp_server.api.event_stream import PROGRESS, answered
from saeclamp_server.api.features.attribute import attribute
from saeclamp_server.api.features.contrast import contrast
from saeclamp_server.api.features.derive import derive
from saeclamp_server.api.features.inspect import inspect
from saeclamp_server.api.features.neighbours import neighbours
from saeclamp_server.api.features.suggest.suggest import suggest
from saeclamp_server.api.strict_route import strict_router
from saeclamp_server.vectors import VectorRegistry

router = strict_router(ends_with_client=True)


@router.post("/v1/features/inspect", response_model=Inspection)
async def inspect_features(body: Inspect, request: Request) -> Response:
    """Say which features are active in a text or a conversation."""
    state = request.app.state
    return await answered(request, lambda model, counter: inspect(body, model, state.served, state.search))


@router.post("/v1/features/contrast", response_model=Contrasted, responses=PROGRESS)
async def contrast_features(body: Contrast, request: Request) -> Response:
    """Say which features tell two sets of texts apart."""
    state = request.app.state
    return await answered(request, lambda model, counter: contrast(body, model, state.served, state.search, counter))


@router.post("/v1/features/attribute", response_model=Attribution, responses=PROGRESS)
async def attribute_token(body: Attribute, request: Request) -> Response:
    """Say which features caused a token, by taking them away."""
    state = request.app.state
    return await answered(
        request, lambda model, counter: attribute(body, model, state.directions, state.served, state.search, counter)
    )


@router.post("/v1/vectors/derive", response_model=DerivedVector, responses=PROGRESS)
async def derive_vector(body: Derive, request: Request) -> Response:
    """Make a vector of what tells two sets of texts apart."""
    state = request.app.state
    vectors: VectorRegistry = state.served.vectors
    return await answered(request, lambda model, counter: derive(body, model, vectors, state.streams, counter))


@router.post("/v1/features/neighbours", response_model=Neighbourhoods)
async def neighbouring_features(body: NeighboursQuery, request: Request) -> Response:
    """Say which features' decoder rows point the same way."""
    state = request.app.state
    return await answered(
        request, lambda model, counter: neighbours(body, state.directions, state.served, state.search)
    )


@router.post("/v1/features/suggest", response_model=Suggestion, responses=PROGRESS)
async def suggest_steering(body: Suggest, request: Request) -> Response:
    """Propose a small steering for a wish, tested against unsteered answers and random features, or say that none works."""
    state = request.app.state
    return await answered(request, lambda model, counter: suggest(body, model, state.served, state.search, counter))
