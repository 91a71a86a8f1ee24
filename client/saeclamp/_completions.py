"""
`client.completions`, named as in openai-python.

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

from collections.abc import Sequence
from typing import Literal, TypeAlias, Unpack, overload

from saeclamp._options import TextOptions, check_options
from saeclamp._requests import GenerationRequest, SteeringLike, build_generation
from saeclamp._responses import Completion, SteeredCompletion
from saeclamp._streaming import AsyncStream, SteeredAsyncStream, SteeredStream, Stream
from saeclamp._transport import AsyncTransport, Transport

Prompt: TypeAlias = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
"""Text or token ids, or several of either."""


def _call(
    prompt: Prompt, model: str | None, steering: SteeringLike | None, stream: bool, options: TextOptions
) -> GenerationRequest[Completion, Completion]:
    check_options(options, TextOptions)
    params = {"model": model, "prompt": prompt, "stream": stream, **options}
    return build_generation("/v1/completions", (Completion, SteeredCompletion), Completion, params, steering)


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
        steering: SteeringLike,
        stream: Literal[False] = False,
        **options: Unpack[TextOptions],
    ) -> SteeredCompletion: ...
    @overload
    def create(
        self,
        *,
        prompt: Prompt,
        model: str | None = None,
        steering: SteeringLike | None = None,
        stream: Literal[False] = False,
        **options: Unpack[TextOptions],
    ) -> Completion: ...
    @overload
    def create(
        self,
        *,
        prompt: Prompt,
        model: str | None = None,
        steering: SteeringLike,
        stream: Literal[True],
        **options: Unpack[TextOptions],
    ) -> SteeredStream[Completion]: ...
    @overload
    def create(
        self,
        *,
        prompt: Prompt,
        model: str | None = None,
        steering: SteeringLike | None = None,
        stream: Literal[True],
        **options: Unpack[TextOptions],
    ) -> Stream[Completion]: ...
    @overload
    def create(
        self,
        *,
        prompt: Prompt,
        model: str | None = None,
        steering: SteeringLike | None = None,
        stream: bool,
        **options: Unpack[TextOptions],
    ) -> Completion | Stream[Completion]: ...
    def create(
        self,
        *,
        prompt: Prompt,
        model: str | None = None,
        steering: SteeringLike | None = None,
        stream: bool = False,
        **options: Unpack[TextOptions],
    ) -> Completion | Stream[Completion]:
        """Continue a text. `model` None asks the server's base model."""
        return self._transport.generate(_call(prompt, model, steering, stream, options))


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
        steering: SteeringLike,
        stream: Literal[False] = False,
        **options: Unpack[TextOptions],
    ) -> SteeredCompletion: ...
    @overload
    async def create(
        self,
        *,
        prompt: Prompt,
        model: str | None = None,
        steering: SteeringLike | None = None,
        stream: Literal[False] = False,
        **options: Unpack[TextOptions],
    ) -> Completion: ...
    @overload
    async def create(
        self,
        *,
        prompt: Prompt,
        model: str | None = None,
        steering: SteeringLike,
        stream: Literal[True],
        **options: Unpack[TextOptions],
    ) -> SteeredAsyncStream[Completion]: ...
    @overload
    async def create(
        self,
        *,
        prompt: Prompt,
        model: str | None = None,
        steering: SteeringLike | None = None,
        stream: Literal[True],
        **options: Unpack[TextOptions],
    ) -> AsyncStream[Completion]: ...
    @overload
    async def create(
        self,
        *,
        prompt: Prompt,
        model: str | None = None,
        steering: SteeringLike | None = None,
        stream: bool,
        **options: Unpack[TextOptions],
    ) -> Completion | AsyncStream[Completion]: ...
    async def create(
        self,
        *,
        prompt: Prompt,
        model: str | None = None,
        steering: SteeringLike | None = None,
        stream: bool = False,
        **options: Unpack[TextOptions],
    ) -> Completion | AsyncStream[Completion]:
        """Continue a text. `model` None asks the server's base model."""
        return await self._transport.generate(_call(prompt, model, steering, stream, options))
