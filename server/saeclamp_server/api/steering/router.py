"""`/v1/steering/...`: trying a steering before it is put to use."""

from __future__ import annotations

from fastapi import Request, Response

from saeclamp.types import Compare, Comparison, Validate, Validation
from saeclamp_server.api.event_stream import PROGRESS, answer_long
from saeclamp_server.api.state import state_of
from saeclamp_server.api.steering.compare import compare
from saeclamp_server.api.steering.validate import validate
from saeclamp_server.api.strict_route import strict_router
from saeclamp_server.steering import vectors_used

router = strict_router(ends_with_client=True)


@router.post("/v1/steering/validate", response_model=Validation)
async def validate_steering(body: Validate, request: Request) -> Response:
    """Resolve a steering as a completion would, and say what it would do."""
    state = state_of(request.app)
    await state.vectors.refresh(vectors_used(body.steering))
    return await answer_long(request, lambda model, counter: validate(body, model, state.context, state.search))


@router.post("/v1/steering/compare", response_model=Comparison, responses=PROGRESS)
async def compare_steering(body: Compare, request: Request) -> Response:
    """Answer a question unsteered, steered, and, if wanted, prompted, with the same seeds."""
    state = state_of(request.app)
    await state.vectors.refresh(vectors_used(body.steering))
    return await answer_long(request, lambda model, counter: compare(body, model, state.context, counter))
