"""
`client.steering`: trying a steering before it is put to use.

All methods raise `APIConnectionError` or `APIStatusError`: 400 says where a steering is wrong, as for a completion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from saeclamp._async.transport import AsyncTransport
from saeclamp._bodies import COMPARE, VALIDATE, Passage, compare_body, validate_body
from saeclamp._options import CompareOptions
from saeclamp._progress import OnProgress
from saeclamp._requests import SteeringLike
from saeclamp.types import Comparison, Validation


class AsyncSteeringTrials:
    """`client.steering`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def validate(self, steering: SteeringLike, messages: Sequence[Mapping[str, Any]] | None = None) -> Validation:
        """Find out what a steering would do, without running anything. `messages` are needed for tokens chosen by role."""
        return await self._transport.ask(Validation, "POST", VALIDATE, body=validate_body(steering, messages))

    async def compare(
        self,
        steering: SteeringLike,
        passage: Passage,
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
        return await self._transport.ask_long(Comparison, COMPARE, compare_body(steering, passage, options), progress)
