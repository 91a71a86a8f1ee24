"""
`client.vectors`: directions of your own, to be moved by name as features are.

A vector is a safetensors file with one one-dimensional tensor and the metadata `layer`, `site`, `sign` and `source`, all
strings; safetensors writes it for numpy or torch, and neither is needed here.

All methods raise `APIConnectionError` or `APIStatusError`: 400 says what is wrong with a file, 404 that there is no such
vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from saeclamp._async.transport import AsyncTransport
from saeclamp._bodies import VECTORS, Passage, VectorFile, derive_body, upload_request, vector_path
from saeclamp._progress import OnProgress
from saeclamp.types import DeletedVector, DerivedVector, StoredVector, StoredVectors


class AsyncVectors:
    """`client.vectors`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def upload(self, name: str, file: VectorFile) -> StoredVector:
        """
        Upload a vector, for `Add(vector=name, ...)` and the other interventions.

        The same content under the same name is accepted again; other content is refused, as vectors do not change.
        """
        return await self._transport.ask(StoredVector, "POST", VECTORS, **upload_request(name, file))

    async def derive(
        self,
        name: str,
        positive: Sequence[Passage],
        negative: Sequence[Passage],
        *,
        site: str,
        method: Literal["mean", "pca"] = "mean",
        tokens: Literal["last", "all"] = "last",
        progress: OnProgress | None = None,
    ) -> DerivedVector:
        """Make a vector of what tells two sets of texts or conversations apart; fields as in `Derive`."""
        body = derive_body(name, positive, negative, site=site, method=method, tokens=tokens)
        return await self._transport.ask_long(DerivedVector, f"{VECTORS}/derive", body, progress)

    async def list(self) -> StoredVectors:
        """List all vectors, and the sites at which they can sit."""
        return await self._transport.ask(StoredVectors, "GET", VECTORS)

    async def get(self, name: str) -> StoredVector:
        """Look up one vector."""
        return await self._transport.ask(StoredVector, "GET", vector_path(name))

    async def delete(self, name: str) -> DeletedVector:
        """Delete a vector. Requests that are running end as they began."""
        return await self._transport.ask(DeletedVector, "DELETE", vector_path(name))
