"""`POST /v1/features/...`: finding features by what the model does with a text."""

from __future__ import annotations

from fastapi import Request

from saeclamp.types import (
    Attribute,
    Attribution,
    Contrast,
    Contrasted,
    Inspect,
    Inspection,
    Neighbourhoods,
    NeighboursQuery,
    Suggest,
    Suggestion,
)
from saeclamp_server.finding.attribution import attribute
from saeclamp_server.finding.contrast import contrast
from saeclamp_server.finding.inspection import inspect
from saeclamp_server.finding.neighbours import neighbours
from saeclamp_server.finding.suggestion import suggest
from saeclamp_server.routes.own_route import own_router

router = own_router()


@router.post("/v1/features/inspect")
async def inspect_features(body: Inspect, request: Request) -> Inspection:
    """Say which features are active in a text or a conversation."""
    state = request.app.state
    return await inspect(body, state.model, state.served, state.search)


@router.post("/v1/features/contrast")
async def contrast_features(body: Contrast, request: Request) -> Contrasted:
    """Say which features tell two sets of texts apart."""
    state = request.app.state
    return await contrast(body, state.model, state.served, state.search)


@router.post("/v1/features/attribute")
async def attribute_token(body: Attribute, request: Request) -> Attribution:
    """Say which features caused a token, by taking them away."""
    state = request.app.state
    return await attribute(body, state.model, state.directions, state.served, state.search)


@router.post("/v1/features/neighbours")
async def neighbouring_features(body: NeighboursQuery, request: Request) -> Neighbourhoods:
    """Say which features' decoder rows point the same way."""
    state = request.app.state
    return await neighbours(body, state.directions, state.served, state.search)


@router.post("/v1/features/suggest")
async def suggest_steering(body: Suggest, request: Request) -> Suggestion:
    """Propose a small steering for a wish, tried on neutral questions."""
    state = request.app.state
    return await suggest(body, state.model, state.served, state.search)
