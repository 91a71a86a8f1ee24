"""Streams of typed chunks: bytes are fetched here, and made chunks of in `_streaming`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING

import httpx

from saeclamp._exceptions import lost_connection
from saeclamp._responses import ChunkT
from saeclamp._stream_finalizers import async_finalizer
from saeclamp._streaming import ChunkReader, SteeredState, StreamState

if TYPE_CHECKING:
    from typing import Self


class AsyncStream(StreamState[ChunkT]):
    """
    Chunks as they arrive; can be iterated once.

    Closes its connection at the end, at an error, on `aclose()`, at the end of its `async with` block, or when garbage.
    Iterating raises `StreamError`, `NotSteeredError`, `APIConnectionError`, `APIResponseValidationError`.
    """

    def __init__(self, response: httpx.Response, chunk_type: type[ChunkT], *, expects_receipt: bool) -> None:
        request_id = response.headers.get("x-request-id")
        self._reader = ChunkReader(chunk_type, expects_receipt=expects_receipt, request_id=request_id)
        self._response = response
        self._bytes = response.aiter_bytes()
        self._finalizer = async_finalizer(self, response)

    def __aiter__(self) -> AsyncIterator[ChunkT]:
        return self

    async def __anext__(self) -> ChunkT:
        chunk = None
        try:
            chunk = await self._advance()
        finally:
            if chunk is None:  # at the end, and at whatever ends it early: nobody is sure to close it then
                await self.aclose()
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def _advance(self) -> ChunkT | None:
        while (chunk := self._reader.next_chunk()) is None and not self._reader.done:
            try:
                data = await anext(self._bytes, None)
            except httpx.RequestError as exc:
                raise lost_connection(exc) from exc
            self._reader.feed(data)
        return chunk

    async def aclose(self) -> None:
        """Stop the generation, if it still runs, by closing its connection. Nothing more is read."""
        self._reader.done = True
        self._finalizer.detach()
        await self._response.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


class SteeredAsyncStream(SteeredState[ChunkT], AsyncStream[ChunkT]):
    """Stream of an answer to a request that asked for steering."""
