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

from typing import Literal, Unpack, overload

from saeclamp._async.streaming import AsyncStream, SteeredAsyncStream
from saeclamp._async.transport import AsyncTransport
from saeclamp._bodies import Prompt, completion_request
from saeclamp._options import TextOptions
from saeclamp._requests import SteeringLike
from saeclamp._responses import Completion, SteeredCompletion


class AsyncCompletions:
    """`client.completions`."""

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
        return await self._transport.generate(completion_request(prompt, model, steering, stream, options))
