"""HTTP with retries. What to send and what came back is decided in `_bodies`, `_requests` and `_progress`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx

from saeclamp._async.streaming import AsyncStream, SteeredAsyncStream
from saeclamp._exceptions import connection_error, lost_connection, status_error
from saeclamp._progress import AnswerReader, OnProgress, has_events, wants
from saeclamp._requests import GenerationRequest, base_model, parse_generation, parse_response
from saeclamp._responses import AnswerT, ChunkT, ModelList, ResponseT
from saeclamp._retries import delay_after_error, delay_after_status, sleep_async
from saeclamp._server_config import HEALTH_TIMEOUT, LIMITS, ServerConfig


class AsyncTransport:
    """Sends requests and waits for the answers."""

    def __init__(self, endpoint: ServerConfig, http_client: httpx.AsyncClient | None) -> None:
        self.endpoint = endpoint
        self._owned = http_client is None
        self._http = http_client or httpx.AsyncClient(limits=LIMITS)
        self._base_model: str | None = None
        self._base_model_lock = asyncio.Lock()

    async def close(self) -> None:
        """Close the connections, unless they are the caller's."""
        if self._owned:
            await self._http.aclose()

    async def generate(self, call: GenerationRequest[ResponseT, ChunkT]) -> ResponseT | AsyncStream[ChunkT]:
        """Send a request for text, to the base model if it names none."""
        if call.model is None:
            call = call.with_model(await self.base_model())
        response = await self._send(self.endpoint.generation(self._http, call))
        if call.stream:
            kind = SteeredAsyncStream if call.expects_receipt else AsyncStream
            return kind(response, call.chunk_type, expects_receipt=call.expects_receipt)
        await _read(response)
        return parse_generation(call, response)

    async def ask(self, answer_type: type[AnswerT], method: str, path: str, **request: Any) -> AnswerT:
        """Send a request that is not for text, and type its answer. `request` is as in `ServerConfig.request`."""
        response = await self._send(self.endpoint.request(self._http, method, path, **request))
        await _read(response)
        return parse_response(answer_type, response)

    async def ask_long(
        self, answer_type: type[AnswerT], path: str, body: Mapping[str, Any], progress: OnProgress | None
    ) -> AnswerT:
        """Post what takes longer, and type its answer. `progress` is told meanwhile how far it is."""
        response = await self._send(self.endpoint.request(self._http, "POST", path, body=body, headers=wants(progress)))
        if not has_events(response):
            await _read(response)
            return parse_response(answer_type, response)
        reader = AnswerReader(answer_type, progress, response.headers.get("x-request-id"))
        try:
            async for data in response.aiter_bytes():
                reader.feed(data)
        except httpx.RequestError as exc:
            raise lost_connection(exc) from exc
        finally:
            await response.aclose()
        return reader.end()

    async def models(self) -> ModelList:
        """Ask which models there are."""
        return await self.ask(ModelList, "GET", "/v1/models")

    async def base_model(self) -> str:
        """Return the base model's name, which is asked for once."""
        async with self._base_model_lock:  # requests that begin at once ask once
            if self._base_model is None:
                self._base_model = base_model(await self.models())
            return self._base_model

    async def health(self) -> bool:
        """Probe once, without retries."""
        try:
            request = self.endpoint.request(self._http, "GET", "/health", timeout=HEALTH_TIMEOUT)
            return (await self._http.send(request)).is_success
        except httpx.RequestError:
            return False

    async def _send(self, request: httpx.Request) -> httpx.Response:
        """Return a 2xx response whose body has not been read yet."""
        attempt = 0
        while True:
            outcome = await self._try_to_send(request, attempt)
            if isinstance(outcome, httpx.Response):
                return outcome
            await sleep_async(outcome)
            attempt += 1

    async def _try_to_send(self, request: httpx.Request, attempt: int) -> httpx.Response | float:
        """Return a 2xx response, or the seconds to wait before the next attempt."""
        try:
            response = await self._http.send(request, stream=True)
        except httpx.RequestError as exc:
            delay = delay_after_error(exc, attempt, self.endpoint.max_retries)
            if delay is None:
                raise connection_error(exc) from exc
            return delay
        if response.is_success:
            return response
        delay = delay_after_status(response, attempt, self.endpoint.max_retries)
        if delay is None:
            await _read(response)
            raise status_error(response)
        await response.aclose()
        return delay


async def _read(response: httpx.Response) -> None:
    try:
        await response.aread()
    except httpx.RequestError as exc:
        raise lost_connection(exc) from exc
    finally:
        await response.aclose()
