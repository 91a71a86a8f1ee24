"""`/v1/steering/...`: trying a steering before it is put to use."""

from __future__ import annotations

from fastapi import Request, Response

from saeclamp.types import Compare, Comparison, Validate, Validation
from saeclamp_server.api.event_stream import PROGRESS, answered
from saeclamp_server.api.steering.compare import compare
from saeclamp_server.api.steering.validate import validate
from saeclamp_server.api.strict_route import strict_router

router = strict_router(ends_with_client=True)


@router.post("/v1/steering/validate", response_model=Validation)
async def validate_steering(body: Validate, request: Request) -> Response:
    """Resolve a steering as a completion would, and say what it would do."""
    state = request.app.state
    return await answered(request, lambda model, counter: validate(body, model, state.served, state.search))


@router.post("/v1/steering/compare", response_model=Comparison, responses=PROGRESS)
async def compare_steering(body: Compare, request: Request) -> Response:
    """Answer a question unsteered, steered, and, if wanted, prompted, with the same seeds."""
    state = request.app.state
    return await answered(request, lambda model, counter: compare(body, model, state.served, counter))
