"""Directions that users have uploaded, as the server describes them."""

from __future__ import annotations

from typing import Literal

from saeclamp.types.base import Answer
from saeclamp.types.rows import Listing


class StoredVector(Answer):
    """A direction that interventions can name."""

    object: str = "vector"
    name: str
    site: str
    """Site at which it is read and added, for example `resid_post 12`."""
    layer: int
    sign: Literal[1, -1]
    """-1: it is the negative of the uploaded numbers that pushes towards the concept, and that an `add` of 1 adds."""
    source: str
    """Origin, in the words of who uploaded it."""
    bias: float | None = None
    """Number that is added to the stream's dot product with it where it is read, as a probe; None: it was given none."""
    norm: float
    """Its length: what an `add` of 1 in unit `act` adds."""
    resid_norm: float | None = None
    """The same as a share of the residual stream's median length at the site; None where that could not be measured."""
    sha256: str
    """Hash of its numbers and of what was said of them."""


class StoredVectors(Listing[StoredVector], Answer):  # type: ignore[misc]  # BaseModel's iterator is of fields
    """All vectors."""

    object: str = "list"
    data: tuple[StoredVector, ...]
    sites: tuple[str, ...] = ()
    """Sites at which vectors can sit."""
    max_vectors: int | None = None
    """Vectors that each site can hold."""

    @property
    def names(self) -> list[str]:
        """Names that may be passed as `vector`."""
        return [vector.name for vector in self.data]


class DeletedVector(Answer):
    """A vector that is no more."""

    object: str = "vector"
    name: str
    deleted: bool
