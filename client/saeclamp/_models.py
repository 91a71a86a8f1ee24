"""`client.models`, named as in openai-python."""

from __future__ import annotations

from saeclamp._responses import ModelList
from saeclamp._transport import AsyncTransport, Transport


class Models:
    """`client.models`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self) -> ModelList:
        """List the base model and its variants. Raises `APIConnectionError` or `APIStatusError`."""
        return self._transport.models()


class AsyncModels:
    """`async_client.models`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def list(self) -> ModelList:
        """List the base model and its variants. Raises `APIConnectionError` or `APIStatusError`."""
        return await self._transport.models()
