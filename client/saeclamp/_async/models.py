"""`client.models`, named as in openai-python."""

from __future__ import annotations

from saeclamp._async.transport import AsyncTransport
from saeclamp._responses import ModelList


class AsyncModels:
    """`client.models`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def list(self) -> ModelList:
        """List the base model and its variants. Raises `APIConnectionError` or `APIStatusError`."""
        return await self._transport.models()
