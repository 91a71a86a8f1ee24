"""
`client.steering`: trying a steering before it is put to use.

All methods raise `APIConnectionError` or `APIStatusError`: 400 says where a steering is wrong, as for a completion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, Unpack

from saeclamp._options import CompareOptions
from saeclamp._progress import OnProgress
from saeclamp._requests import SteeringLike
from saeclamp._transport import AsyncTransport, Transport
from saeclamp.types import Compare, Comparison, Validate, Validation, as_steering

VALIDATE, COMPARE = "/v1/steering/validate", "/v1/steering/compare"

Messages: TypeAlias = Sequence[Mapping[str, Any]]


def _validate(steering: SteeringLike, messages: Messages | None) -> dict[str, Any]:
    chat = None if messages is None else tuple(dict(message) for message in messages)
    return Validate(steering=as_steering(steering), messages=chat).to_json()


def _compare(steering: SteeringLike, passage: str | Messages, options: Mapping[str, Any]) -> dict[str, Any]:
    asked = {"text": passage} if isinstance(passage, str) else {"messages": [dict(message) for message in passage]}
    return Compare(**asked, steering=as_steering(steering), **options).to_json()


class SteeringTrials:
    """`client.steering`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def validate(self, steering: SteeringLike, messages: Messages | None = None) -> Validation:
        """Find out what a steering would do, without running anything. `messages` are needed for tokens chosen by role."""
        return self._transport.ask(Validation, "POST", VALIDATE, body=_validate(steering, messages))

    def compare(
        self,
        steering: SteeringLike,
        passage: str | Messages,
        *,
        progress: OnProgress | None = None,
        **options: Unpack[CompareOptions],
    ) -> Comparison:
        """
        Answer a question unsteered, steered, and, if wanted, prompted, with the same seeds.

        passage:  a text to be continued, or the messages of a conversation to be answered
        progress: is told about twice a second how far it is
        options:  as in `Compare`: `prompted`, `seeds`, `max_tokens`, `temperature`, ...
        """
        return self._transport.ask_long(Comparison, COMPARE, _compare(steering, passage, options), progress)


class AsyncSteeringTrials:
    """`async_client.steering`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def validate(self, steering: SteeringLike, messages: Messages | None = None) -> Validation:
        """Find out what a steering would do, without running anything. `messages` are needed for tokens chosen by role."""
        return await self._transport.ask(Validation, "POST", VALIDATE, body=_validate(steering, messages))

    async def compare(
        self,
        steering: SteeringLike,
        passage: str | Messages,
        *,
        progress: OnProgress | None = None,
        **options: Unpack[CompareOptions],
    ) -> Comparison:
        """
        Answer a question unsteered, steered, and, if wanted, prompted, with the same seeds.

        passage:  a text to be continued, or the messages of a conversation to be answered
        progress: is told about twice a second how far it is
        options:  as in `Compare`: `prompted`, `seeds`, `max_tokens`, `temperature`, ...
        """
        return await self._transport.ask_long(Comparison, COMPARE, _compare(steering, passage, options), progress)
