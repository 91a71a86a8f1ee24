"""HTTP with retries, once with threads and once with asyncio. What to send and what came back is decided elsewhere."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from saeclamp._exceptions import connection_error, lost_connection, status_error
from saeclamp._progress import AnswerReader, OnProgress, has_events, wants
from saeclamp._requests import GenerationRequest, base_model, encode, parse_generation, parse_response, server_root
from saeclamp._responses import AnswerT, ChunkT, ModelList, ResponseT
from saeclamp._retries import delay_after_error, delay_after_status
from saeclamp._streaming import AsyncStream, SteeredAsyncStream, SteeredStream, Stream

CONNECT_TIMEOUT = 5.0
HEALTH_TIMEOUT = 5.0
"""Seconds."""

LIMITS = httpx.Limits(max_connections=1000, max_keepalive_connections=100)
"""httpx's own 100 connections are fewer than the sequences that a server decodes at once."""


@dataclass(frozen=True)
class ServerConfig:
    """Where the server is, and how it is spoken to."""

    root: str
    headers: httpx.Headers
    timeout: httpx.Timeout
    max_retries: int

    @classmethod
    def from_options(
        cls, base_url: str, headers: httpx.Headers, timeout: float | httpx.Timeout | None, max_retries: int
    ) -> ServerConfig:
        """Normalise what a client's constructor was given."""
        return cls(server_root(base_url), headers, as_timeout(timeout), max_retries)

    def request(
        self,
        http: httpx.Client | httpx.AsyncClient,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        content: bytes | None = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | httpx.Timeout | None = None,
    ) -> httpx.Request:
        """
        Lay out one HTTP request.

        body:    written as JSON; `content` is sent as it is
        timeout: in seconds; None takes the endpoint's
        """
        merged = self.headers.copy()
        if body is not None:
            merged["content-type"] = "application/json"
        merged.update(headers)
        wait = self.timeout if timeout is None else as_timeout(timeout)
        content = content if body is None else encode(body)
        # Built by the client that sends it, so that a caller's own client adds its cookies and headers.
        return http.build_request(
            method, self.root + path, params=params, headers=merged, content=content, timeout=wait
        )

    def generation(
        self, http: httpx.Client | httpx.AsyncClient, call: GenerationRequest[ResponseT, ChunkT]
    ) -> httpx.Request:
        """Lay out a request for text."""
        return self.request(http, "POST", call.path, body=call.body, headers=call.headers, timeout=call.timeout)


def as_timeout(timeout: float | httpx.Timeout | None) -> httpx.Timeout:
    """Seconds between two bytes of an answer; connecting gets 5 s of them at most. None waits for ever."""
    if isinstance(timeout, httpx.Timeout):
        return timeout
    return httpx.Timeout(timeout, connect=CONNECT_TIMEOUT if timeout is None else min(timeout, CONNECT_TIMEOUT))


def sleep(seconds: float) -> None:
    """Wait before a retry. Tests replace it."""
    time.sleep(seconds)


async def sleep_async(seconds: float) -> None:
    """Wait before a retry. Tests replace it."""
    await asyncio.sleep(seconds)


class Transport:
    """Sends requests and waits for the answers."""

    def __init__(self, endpoint: ServerConfig, http_client: httpx.Client | None) -> None:
        self.endpoint = endpoint
        self._owned = http_client is None
        self._http = http_client or httpx.Client(limits=LIMITS)
        self._base_model: str | None = None
        self._base_model_lock = threading.Lock()

    def close(self) -> None:
        """Close the connections, unless they are the caller's."""
        if self._owned:
            self._http.close()

    def generate(self, call: GenerationRequest[ResponseT, ChunkT]) -> ResponseT | Stream[ChunkT]:
        """Send a request for text, to the base model if it names none."""
        if call.model is None:
            call = call.with_model(self.base_model())
        response = self._send(self.endpoint.generation(self._http, call))
        if call.stream:
            kind = SteeredStream if call.expects_receipt else Stream
            return kind(response, call.chunk_type, expects_receipt=call.expects_receipt)
        _read(response)
        return parse_generation(call, response)

    def ask(self, answer_type: type[AnswerT], method: str, path: str, **request: Any) -> AnswerT:
        """Send a request that is not for text, and type its answer. `request` is as in `Endpoint.request`."""
        response = self._send(self.endpoint.request(self._http, method, path, **request))
        _read(response)
        return parse_response(answer_type, response)

    def ask_long(
        self, answer_type: type[AnswerT], path: str, body: Mapping[str, Any], progress: OnProgress | None
    ) -> AnswerT:
        """Post what takes longer, and type its answer. `progress` is told meanwhile how far it is."""
        response = self._send(self.endpoint.request(self._http, "POST", path, body=body, headers=wants(progress)))
        if not has_events(response):
            _read(response)
            return parse_response(answer_type, response)
        reader = AnswerReader(answer_type, progress, response.headers.get("x-request-id"))
        try:
            for data in response.iter_bytes():
                reader.feed(data)
        except httpx.RequestError as exc:
            raise lost_connection(exc) from exc
        finally:
            response.close()
        return reader.end()

    def models(self) -> ModelList:
        """Ask which models there are."""
        return self.ask(ModelList, "GET", "/v1/models")

    def base_model(self) -> str:
        """Return the base model's name, which is asked for once."""
        with self._base_model_lock:
            if self._base_model is None:
                self._base_model = base_model(self.models())
            return self._base_model

    def health(self) -> bool:
        """Probe once, without retries."""
        try:
            request = self.endpoint.request(self._http, "GET", "/health", timeout=HEALTH_TIMEOUT)
            return self._http.send(request).is_success
        except httpx.RequestError:
            return False

    def _send(self, request: httpx.Request) -> httpx.Response:
        """Return a 2xx response whose body has not been read yet."""
        attempt = 0
        while True:
            outcome = self._try_to_send(request, attempt)
            if isinstance(outcome, httpx.Response):
                return outcome
            sleep(outcome)
            attempt += 1

    def _try_to_send(self, request: httpx.Request, attempt: int) -> httpx.Response | float:
        """Return a 2xx response, or the seconds to wait before the next attempt."""
        try:
            response = self._http.send(request, stream=True)
        except httpx.RequestError as exc:
            delay = delay_after_error(exc, attempt, self.endpoint.max_retries)
            if delay is None:
                raise connection_error(exc) from exc
            return delay
        if response.is_success:
            return response
        delay = delay_after_status(response, attempt, self.endpoint.max_retries)
        if delay is None:
            _read(response)
            raise status_error(response)
        response.close()
        return delay


def _read(response: httpx.Response) -> None:
    try:
        response.read()
    except httpx.RequestError as exc:
        raise lost_connection(exc) from exc
    finally:
        response.close()


class AsyncTransport:
    """`Transport` with asyncio."""

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
        await _aread(response)
        return parse_generation(call, response)

    async def ask(self, answer_type: type[AnswerT], method: str, path: str, **request: Any) -> AnswerT:
        """Send a request that is not for text, and type its answer. `request` is as in `Endpoint.request`."""
        response = await self._send(self.endpoint.request(self._http, method, path, **request))
        await _aread(response)
        return parse_response(answer_type, response)

    async def ask_long(
        self, answer_type: type[AnswerT], path: str, body: Mapping[str, Any], progress: OnProgress | None
    ) -> AnswerT:
        """Post what takes longer, and type its answer. `progress` is told meanwhile how far it is."""
        response = await self._send(self.endpoint.request(self._http, "POST", path, body=body, headers=wants(progress)))
        if not has_events(response):
            await _aread(response)
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
        async with self._base_model_lock:
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
            await _aread(response)
            raise status_error(response)
        await response.aclose()
        return delay


async def _aread(response: httpx.Response) -> None:
    try:
        await response.aread()
    except httpx.RequestError as exc:
        raise lost_connection(exc) from exc
    finally:
        await response.aclose()
