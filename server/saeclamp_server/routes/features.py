"""`/v1/saes` and `/v1/features`: the loaded SAEs, and what is known of each feature."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from saeclamp.types import StoredFeature
from saeclamp_server.errors import RequestError, UnknownSAEError
from saeclamp_server.features import KnownSAE
from saeclamp_server.steering import Served, find

router = APIRouter()


@router.get("/v1/saes", response_model=None)
async def list_saes(request: Request) -> JSONResponse:
    """List the loaded SAEs."""
    known = _known(request).values()
    return JSONResponse({"object": "list", "data": [sae.to_wire().model_dump(mode="json") for sae in known]})


@router.get("/v1/saes/{sae}", response_model=None)
async def get_sae(request: Request, sae: str) -> JSONResponse:
    """Look up one SAE."""
    known = _known(request)
    if sae not in known:
        error = UnknownSAEError(sae, known, "sae")
        error.status = 404
        raise error
    return JSONResponse(known[sae].to_wire().model_dump(mode="json"))


@router.get("/v1/features/{sae}/{feature}", response_model=None)
async def get_feature(request: Request, sae: str, feature: str) -> JSONResponse:
    """Look up all that is known of a feature, by its index or its name in the feature book."""
    served: Served = request.app.state.served
    try:
        entry, index = find(f"{sae}/{feature}", served.saes, "feature")
    except RequestError as exc:
        exc.status = 404
        raise

    def described() -> StoredFeature:
        return _known(request)[entry.name].feature(index, served.max_act(entry.name, index))

    return JSONResponse((await run_in_threadpool(described)).model_dump(mode="json"))


def _known(request: Request) -> Mapping[str, KnownSAE]:
    known: Mapping[str, KnownSAE] = request.app.state.known
    return known
