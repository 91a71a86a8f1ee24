"""The client: where the server is, who asks, and how patiently."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

import httpx

from saeclamp._async.chat import AsyncChat
from saeclamp._async.completions import AsyncCompletions
from saeclamp._async.features import AsyncFeatures, AsyncSAEs
from saeclamp._async.models import AsyncModels
from saeclamp._async.steering import AsyncSteeringTrials
from saeclamp._async.transport import AsyncTransport
from saeclamp._async.variants import AsyncVariants
from saeclamp._async.vectors import AsyncVectors
from saeclamp._requests import default_headers as headers_of
from saeclamp._server_config import DEFAULT_BASE_URL, DEFAULT_MAX_RETRIES, DEFAULT_TIMEOUT, ServerConfig

if TYPE_CHECKING:
    from typing import Self


class AsyncClient:
    """
    A saeclamp server, spoken to as in openai-python.

    base_url:        with or without `/v1`; a bare `host:port`, or `port` of this machine, is understood
    api_key:         falls back to the environment variable SAECLAMP_API_KEY, which `export SAECLAMP_API_KEY=...` sets in a
                     shell; no other variable is read
    timeout:         seconds without a byte from the server; connecting gets 5 s of them at most; None waits for ever
    max_retries:     how often a request is sent again that the server cannot have begun to answer
    http_client:     for proxies, certificates or tests; stays open when this client is closed
    default_headers: added to every request
    """

    def __init__(
        self,
        base_url: str = DEFAULT_BASE_URL,
        api_key: str | None = None,
        timeout: float | httpx.Timeout | None = DEFAULT_TIMEOUT,
        max_retries: int = DEFAULT_MAX_RETRIES,
        http_client: httpx.AsyncClient | None = None,
        default_headers: Mapping[str, str] | None = None,
    ) -> None:
        headers = headers_of(api_key, default_headers)
        self._transport = AsyncTransport(
            ServerConfig.from_options(base_url, headers, timeout, max_retries), http_client
        )
        self.chat = AsyncChat(self._transport)
        self.completions = AsyncCompletions(self._transport)
        self.models = AsyncModels(self._transport)
        self.saes = AsyncSAEs(self._transport)
        self.features = AsyncFeatures(self._transport)
        self.steering = AsyncSteeringTrials(self._transport)
        self.vectors = AsyncVectors(self._transport)
        self.variants = AsyncVariants(self._transport)

    async def health(self) -> bool:
        """Tell whether the server answers and can generate. Asks once and waits 5 s; never raises for a broken server."""
        return await self._transport.health()

    async def close(self) -> None:
        """Close the connections. A stream that is still open ends in an error."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
