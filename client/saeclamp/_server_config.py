"""The server's address and options, and the layout of one HTTP request to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from saeclamp._requests import GenerationRequest, encode, server_root
from saeclamp._responses import ChunkT, ResponseT

DEFAULT_PORT = 8000
"""vLLM's, on which `saeclamp serve` listens too."""
DEFAULT_BASE_URL = f"http://127.0.0.1:{DEFAULT_PORT}"
DEFAULT_TIMEOUT = 600.0
"""Seconds without a byte from the server."""
DEFAULT_MAX_RETRIES = 2
CONNECT_TIMEOUT = 5.0
HEALTH_TIMEOUT = 5.0
"""Seconds in which a server must say that it is well."""

LIMITS = httpx.Limits(max_connections=1000, max_keepalive_connections=100)
"""httpx's own 100 connections are fewer than the sequences that a server decodes at once."""


@dataclass(frozen=True)
class ServerConfig:
    """A server's address, and how it is spoken to."""

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
