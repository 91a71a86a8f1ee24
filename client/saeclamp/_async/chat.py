"""
`client.chat.completions`, named as in openai-python.

`create` takes, besides what its signature names, the fields of the API (`temperature`, `max_tokens`, `seed`, ...) and
openai-python's `extra_body`, `extra_headers` and `timeout` (seconds). Where `steering` is given, the answer's receipt is
there and its type says so; with `receipt="none"` there is none, and the answer is as without steering.

It raises:

* `InvalidArgumentError` for a wrong argument, before anything is sent;
* `APIConnectionError` or `APIStatusError` where the server cannot or will not answer;
* `NotSteeredError` where steering was asked for and the answer does not say that it was applied, which a stream can
  only tell at its end.
"""

from __future__ import annotations

from typing import Literal, Unpack, overload

from saeclamp._async.streaming import AsyncStream, SteeredAsyncStream
from saeclamp._async.transport import AsyncTransport
from saeclamp._bodies import Messages, chat_request
from saeclamp._options import ChatOptions
from saeclamp._requests import SteeringLike
from saeclamp._responses import ChatCompletion, ChatCompletionChunk, SteeredChatCompletion


class AsyncChatCompletions:
    """`client.chat.completions`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    @overload
    async def create(
        self,
        *,
        messages: Messages,
        model: str | None = None,
        steering: SteeringLike,
        stream: Literal[False] = False,
        **options: Unpack[ChatOptions],
    ) -> SteeredChatCompletion: ...
    @overload
    async def create(
        self,
        *,
        messages: Messages,
        model: str | None = None,
        steering: SteeringLike | None = None,
        stream: Literal[False] = False,
        **options: Unpack[ChatOptions],
    ) -> ChatCompletion: ...
    @overload
    async def create(
        self,
        *,
        messages: Messages,
        model: str | None = None,
        steering: SteeringLike,
        stream: Literal[True],
        **options: Unpack[ChatOptions],
    ) -> SteeredAsyncStream[ChatCompletionChunk]: ...
    @overload
    async def create(
        self,
        *,
        messages: Messages,
        model: str | None = None,
        steering: SteeringLike | None = None,
        stream: Literal[True],
        **options: Unpack[ChatOptions],
    ) -> AsyncStream[ChatCompletionChunk]: ...
    @overload
    async def create(
        self,
        *,
        messages: Messages,
        model: str | None = None,
        steering: SteeringLike | None = None,
        stream: bool,
        **options: Unpack[ChatOptions],
    ) -> ChatCompletion | AsyncStream[ChatCompletionChunk]: ...
    async def create(
        self,
        *,
        messages: Messages,
        model: str | None = None,
        steering: SteeringLike | None = None,
        stream: bool = False,
        **options: Unpack[ChatOptions],
    ) -> ChatCompletion | AsyncStream[ChatCompletionChunk]:
        """Continue a conversation. `model` None asks the server's base model."""
        return await self._transport.generate(chat_request(messages, model, steering, stream, options))


class AsyncChat:
    """`client.chat`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self.completions = AsyncChatCompletions(transport)
