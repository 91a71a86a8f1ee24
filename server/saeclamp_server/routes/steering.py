"""`/v1/steering/...`: trying a steering before it is put to use."""

from __future__ import annotations

from fastapi import Request

from saeclamp.types import Compare, Comparison, Validate, Validation
from saeclamp_server.routes.own_route import own_router
from saeclamp_server.trying.comparison import compare
from saeclamp_server.trying.validation import validate

router = own_router()


@router.post("/v1/steering/validate")
async def validate_steering(body: Validate, request: Request) -> Validation:
    """Resolve a steering as a completion would, and say what it would do."""
    state = request.app.state
    return await validate(body, state.model, state.served, state.search)


@router.post("/v1/steering/compare")
async def compare_steering(body: Compare, request: Request) -> Comparison:
    """Answer a question unsteered, steered, and, if wanted, prompted, with the same seeds."""
    state = request.app.state
    return await compare(body, state.model, state.served)
