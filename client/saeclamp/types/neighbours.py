"""Which features point the same way."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from saeclamp.types._base import MAX_READ, Answer, EndpointRequest
from saeclamp.types.features import Neighbour
from saeclamp.types.interventions import Feature
from saeclamp.types.rows import Listing
from saeclamp.types.search import MAX_HITS


class NeighboursQuery(EndpointRequest):
    """Body of `POST /v1/features/neighbours`."""

    features: Annotated[tuple[Feature, ...], Field(min_length=1, max_length=MAX_READ)]
    limit: Annotated[int, Field(strict=True, ge=1, le=MAX_HITS)] = 10
    """Neighbours of each."""


class Neighbourhood(Answer):
    """A feature, and those of its SAE whose decoder rows point the same way; the nearest first."""

    feature: str
    name: str | None = None
    neighbours: tuple[Neighbour, ...]


class Neighbourhoods(Listing[Neighbourhood], Answer):  # type: ignore[misc]  # BaseModel's iterator is of fields
    """One for each feature that was asked about, in order."""

    object: str = "list"
    data: tuple[Neighbourhood, ...]

    def _records(self) -> list[dict[str, Any]]:
        return [{"of": near.feature, **neighbour.model_dump()} for near in self.data for neighbour in near.neighbours]
