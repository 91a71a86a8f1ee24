"""`/v1/saes` and `/v1/features`: the loaded SAEs, looking for features, and what is known of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from fastapi import Query, Request

from saeclamp.types import FeatureHits, FeatureQuery, StoredFeature, StoredSAE, StoredSAEs
from saeclamp_server.api.features import FeatureSearch, ServedSAE
from saeclamp_server.api.strict_route import strict_router
from saeclamp_server.errors import RequestError, UnknownSAEError
from saeclamp_server.steering import SteeringContext, find_feature
from saeclamp_server.threads import searched

router = strict_router(ends_with_client=True)


@router.get("/v1/saes")
async def list_saes(request: Request) -> StoredSAEs:
    """List the loaded SAEs."""
    return StoredSAEs(data=tuple(sae.to_wire() for sae in _known(request).values()))


@router.get("/v1/saes/{sae}")
async def get_sae(request: Request, sae: str) -> StoredSAE:
    """Look up one SAE."""
    known = _known(request)
    if sae not in known:
        error = UnknownSAEError(sae, known, "sae")
        error.status = 404
        raise error
    return known[sae].to_wire()


@router.get("/v1/features")
async def find_features(request: Request, query: Annotated[FeatureQuery, Query()]) -> FeatureHits:
    """Look for features by words and by meaning, or list them."""
    for name in query.sae:
        if name not in _known(request):
            raise UnknownSAEError(name, _known(request), "sae")
    search: FeatureSearch = request.app.state.search
    await search.until_ready()
    return await searched(search.find, query)


@router.get("/v1/features/{sae}/{feature}")
async def get_feature(request: Request, sae: str, feature: str) -> StoredFeature:
    """Look up all that is known of a feature, by its index or its name in the feature book."""
    served: SteeringContext = request.app.state.served
    try:
        entry, index = find_feature(f"{sae}/{feature}", served.saes, "feature")
    except RequestError as exc:
        exc.status = 404
        raise

    def described() -> StoredFeature:
        return _known(request)[entry.name].feature(index, served.max_act(entry.name, index), served.describe)

    return await searched(described)


def _known(request: Request) -> Mapping[str, ServedSAE]:
    known: Mapping[str, ServedSAE] = request.app.state.served_saes
    return known
