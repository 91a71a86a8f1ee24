"""
`client.chat.completions`, `client.completions` and `client.models`, named as in openai-python.

`create` takes, besides what its signature names, any field of the API (`temperature`, `max_tokens`, `seed`, ...) and
openai-python's `extra_body`, `extra_headers` and `timeout` (seconds).

All `create` methods raise:

* `InvalidArgumentError` for a wrong argument, before anything is sent;
* `APIConnectionError` or `APIStatusError` where the server cannot or will not answer;
* `NotSteeredError` where steering was asked for and the answer does not say that it was applied, which a stream can
  only tell at its end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, overload

from pydantic import BaseModel

from saeclamp._requests import Generation, SteeringLike, build_generation
from saeclamp._responses import ChatCompletion, ChatCompletionChunk, Completion, ModelList
from saeclamp._streaming import AsyncStream, Stream
from saeclamp._transport import AsyncTransport, Transport

Messages: TypeAlias = Sequence[Mapping[str, Any] | BaseModel]
"""Dicts as in OpenAI's API; a message of an earlier answer may stand among them."""

Prompt: TypeAlias = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
"""Text or token ids, or several of either."""


def _chat(params: dict[str, Any], steering: SteeringLike | None) -> Generation[ChatCompletion, ChatCompletionChunk]:
    return build_generation("/v1/chat/completions", ChatCompletion, ChatCompletionChunk, params, steering)


def _text(params: dict[str, Any], steering: SteeringLike | None) -> Generation[Completion, Completion]:
    return build_generation("/v1/completions", Completion, Completion, params, steering)


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
        steering: SteeringLike | None = None,
        stream: Literal[False] = False,
        **openai_params: Any,
    ) -> ChatCompletion: ...
    @overload
    def create(
        self,
        *,
        messages: Messages,
        model: str | None = None,
        steering: SteeringLike | None = None,
        stream: Literal[True],
        **openai_params: Any,
    ) -> Stream[ChatCompletionChunk]: ...
    def create(
        self,
        *,
        messages: Messages,
        model: str | None = None,
        steering: SteeringLike | None = None,
        stream: bool = False,
        **openai_params: Any,
    ) -> ChatCompletion | Stream[ChatCompletionChunk]:
        """Continue a conversation. `model` None asks the server's base model."""
        params = {"model": model, "messages": messages, "stream": stream, **openai_params}
        return self._transport.generate(_chat(params, steering))


class Chat:
    """`client.chat`."""

    def __init__(self, transport: Transport) -> None:
        self.completions = ChatCompletions(transport)


class Completions:
    """`client.completions`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    @overload
    def create(
        self,
        *,
        prompt: Prompt,
        model: str | None = None,
        steering: SteeringLike | None = None,
        stream: Literal[False] = False,
        **openai_params: Any,
    ) -> Completion: ...
    @overload
    def create(
        self,
        *,
        prompt: Prompt,
        model: str | None = None,
        steering: SteeringLike | None = None,
        stream: Literal[True],
        **openai_params: Any,
    ) -> Stream[Completion]: ...
    def create(
        self,
        *,
        prompt: Prompt,
        model: str | None = None,
        steering: SteeringLike | None = None,
        stream: bool = False,
        **openai_params: Any,
    ) -> Completion | Stream[Completion]:
        """Continue a text. `model` None asks the server's base model."""
        params = {"model": model, "prompt": prompt, "stream": stream, **openai_params}
        return self._transport.generate(_text(params, steering))


class Models:
    """`client.models`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self) -> ModelList:
        """List the base model and its variants. Raises `APIConnectionError` or `APIStatusError`."""
        return self._transport.models()


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
        steering: SteeringLike | None = None,
        stream: Literal[False] = False,
        **openai_params: Any,
    ) -> ChatCompletion: ...
    @overload
    async def create(
        self,
        *,
        messages: Messages,
        model: str | None = None,
        steering: SteeringLike | None = None,
        stream: Literal[True],
        **openai_params: Any,
    ) -> AsyncStream[ChatCompletionChunk]: ...
    async def create(
        self,
        *,
        messages: Messages,
        model: str | None = None,
        steering: SteeringLike | None = None,
        stream: bool = False,
        **openai_params: Any,
    ) -> ChatCompletion | AsyncStream[ChatCompletionChunk]:
        """Continue a conversation. `model` None asks the server's base model."""
        params = {"model": model, "messages": messages, "stream": stream, **openai_params}
        return await self._transport.generate(_chat(params, steering))


class AsyncChat:
    """`async_client.chat`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self.completions = AsyncChatCompletions(transport)


class AsyncCompletions:
    """`async_client.completions`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    @overload
    async def create(
        self,
        *,
        prompt: Prompt,
        model: str | None = None,
        steering: SteeringLike | None = None,
        stream: Literal[False] = False,
        **openai_params: Any,
    ) -> Completion: ...
    @overload
    async def create(
        self,
        *,
        prompt: Prompt,
        model: str | None = None,
        steering: SteeringLike | None = None,
        stream: Literal[True],
        **openai_params: Any,
    ) -> AsyncStream[Completion]: ...
    async def create(
        self,
        *,
        prompt: Prompt,
        model: str | None = None,
        steering: SteeringLike | None = None,
        stream: bool = False,
        **openai_params: Any,
    ) -> Completion | AsyncStream[Completion]:
        """Continue a text. `model` None asks the server's base model."""
        params = {"model": model, "prompt": prompt, "stream": stream, **openai_params}
        return await self._transport.generate(_text(params, steering))


class AsyncModels:
    """`async_client.models`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def list(self) -> ModelList:
        """List the base model and its variants. Raises `APIConnectionError` or `APIStatusError`."""
        return await self._transport.models()
