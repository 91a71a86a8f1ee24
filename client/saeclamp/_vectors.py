"""
`client.vectors`: directions of your own, to be moved by name as features are.

A vector is a safetensors file with one one-dimensional tensor and the metadata `layer`, `site`, `sign` and `source`, all
strings; safetensors writes it for numpy or torch, and neither is needed here.

All methods raise `APIConnectionError` or `APIStatusError`: 400 says what is wrong with a file, 404 that there is no such
vector.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from saeclamp._exceptions import ArgumentTypeError, InvalidArgumentError
from saeclamp._features import Passage
from saeclamp._progress import OnProgress
from saeclamp._transport import AsyncTransport, Transport
from saeclamp.types import DeletedVector, Derive, DerivedVector, StoredVector, StoredVectors
from saeclamp.types.interventions import is_vector_name

PATH = "/v1/vectors"

VectorFile: TypeAlias = bytes | str | os.PathLike[str]
"""The content of a safetensors file, or where it is."""


def _upload(name: str, file: VectorFile) -> dict[str, Any]:
    content = file if isinstance(file, bytes) else Path(file).read_bytes()
    return {"content": content, "params": {"name": name}, "headers": {"content-type": "application/octet-stream"}}


def _derive(name: str, positive: Sequence[Passage], negative: Sequence[Passage], **options: Any) -> dict[str, Any]:
    for path, passages in (("positive", positive), ("negative", negative)):
        if isinstance(passages, str):  # which would be taken for a list of letters
            raise ArgumentTypeError(f"{path}: a list of texts is needed, not one text: [text, ...].", path)
    return Derive(name=name, positive=tuple(positive), negative=tuple(negative), **options).to_json()


def _path(name: str) -> str:
    """Refuse a name that no vector has, and that might lead to another path."""
    if not is_vector_name(name):
        raise InvalidArgumentError(f"name: no vector can be named {name!r}.", "name")
    return f"{PATH}/{name}"


class Vectors:
    """`client.vectors`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def upload(self, name: str, file: VectorFile) -> StoredVector:
        """
        Upload a vector, for `Add(vector=name, ...)` and the other interventions.

        The same content under the same name is accepted again; other content is refused, as vectors do not change.
        """
        return self._transport.ask(StoredVector, "POST", PATH, **_upload(name, file))

    def derive(
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
        body = _derive(name, positive, negative, site=site, method=method, tokens=tokens)
        return self._transport.ask_long(DerivedVector, f"{PATH}/derive", body, progress)

    def list(self) -> StoredVectors:
        """List all vectors, and the sites at which they can sit."""
        return self._transport.ask(StoredVectors, "GET", PATH)

    def get(self, name: str) -> StoredVector:
        """Look up one vector."""
        return self._transport.ask(StoredVector, "GET", _path(name))

    def delete(self, name: str) -> DeletedVector:
        """Delete a vector. Requests that are running end as they began."""
        return self._transport.ask(DeletedVector, "DELETE", _path(name))


class AsyncVectors:
    """`async_client.vectors`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def upload(self, name: str, file: VectorFile) -> StoredVector:
        """
        Upload a vector, for `Add(vector=name, ...)` and the other interventions.

        The same content under the same name is accepted again; other content is refused, as vectors do not change.
        """
        return await self._transport.ask(StoredVector, "POST", PATH, **_upload(name, file))

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
        body = _derive(name, positive, negative, site=site, method=method, tokens=tokens)
        return await self._transport.ask_long(DerivedVector, f"{PATH}/derive", body, progress)

    async def list(self) -> StoredVectors:
        """List all vectors, and the sites at which they can sit."""
        return await self._transport.ask(StoredVectors, "GET", PATH)

    async def get(self, name: str) -> StoredVector:
        """Look up one vector."""
        return await self._transport.ask(StoredVector, "GET", _path(name))

    async def delete(self, name: str) -> DeletedVector:
        """Delete a vector. Requests that are running end as they began."""
        return await self._transport.ask(DeletedVector, "DELETE", _path(name))
