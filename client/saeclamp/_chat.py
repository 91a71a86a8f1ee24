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

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, Unpack, overload

from pydantic import BaseModel

from saeclamp._options import ChatOptions, check_options
from saeclamp._requests import GenerationRequest, SteeringLike, build_generation
from saeclamp._responses import ChatCompletion, ChatCompletionChunk, SteeredChatCompletion
from saeclamp._streaming import AsyncStream, SteeredAsyncStream, SteeredStream, Stream
from saeclamp._transport import AsyncTransport, Transport

Messages: TypeAlias = Sequence[Mapping[str, Any] | BaseModel]
"""Dicts as in OpenAI's API; a message of an earlier answer may stand among them."""


def _call(
    messages: Messages, model: str | None, steering: SteeringLike | None, stream: bool, options: ChatOptions
) -> GenerationRequest[ChatCompletion, ChatCompletionChunk]:
    check_options(options, ChatOptions)
    params = {"model": model, "messages": messages, "stream": stream, **options}
    return build_generation(
        "/v1/chat/completions", (ChatCompletion, SteeredChatCompletion), ChatCompletionChunk, params, steering
    )


class ChatCompletions:
    """`client.chat.completions`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    @overload
    def create(
        self,
        *,
        messages: Messages,
        model: str | None = None,
        steering: SteeringLike,
        stream: Literal[False] = False,
        **options: Unpack[ChatOptions],
    ) -> SteeredChatCompletion: ...
    @overload
    def create(
        self,
        *,
        messages: Messages,
        model: str | None = None,
        steering: SteeringLike | None = None,
        stream: Literal[False] = False,
        **options: Unpack[ChatOptions],
    ) -> ChatCompletion: ...
    @overload
    def create(
        self,
        *,
        messages: Messages,
        model: str | None = None,
        steering: SteeringLike,
        stream: Literal[True],
        **options: Unpack[ChatOptions],
    ) -> SteeredStream[ChatCompletionChunk]: ...
    @overload
    def create(
        self,
        *,
        messages: Messages,
        model: str | None = None,
        steering: SteeringLike | None = None,
        stream: Literal[True],
        **options: Unpack[ChatOptions],
    ) -> Stream[ChatCompletionChunk]: ...
    @overload
    def create(
        self,
        *,
        messages: Messages,
        model: str | None = None,
        steering: SteeringLike | None = None,
        stream: bool,
        **options: Unpack[ChatOptions],
    ) -> ChatCompletion | Stream[ChatCompletionChunk]: ...
    def create(
        self,
        *,
        messages: Messages,
        model: str | None = None,
        steering: SteeringLike | None = None,
        stream: bool = False,
        **options: Unpack[ChatOptions],
    ) -> ChatCompletion | Stream[ChatCompletionChunk]:
        """Continue a conversation. `model` None asks the server's base model."""
        return self._transport.generate(_call(messages, model, steering, stream, options))


class Chat:
    """`client.chat`."""

    def __init__(self, transport: Transport) -> None:
        self.completions = ChatCompletions(transport)


class AsyncChatCompletions:
    """`async_client.chat.completions`."""

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
        return await self._transport.generate(_call(messages, model, steering, stream, options))


class AsyncChat:
    """`async_client.chat`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self.completions = AsyncChatCompletions(transport)
