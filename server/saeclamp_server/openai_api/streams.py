"""The receipt in a stream: inside the last ordinary chunk before `[DONE]`, as openai-python mangles named events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Protocol

from saeclamp.types import Receipt
from saeclamp_server.errors import NotAppliedError

DONE = "data: [DONE]"


class Call(Protocol):
    """What this module needs of a steered call."""

    @property
    def wants_receipt(self) -> bool:
        """Whether the receipt is to be sent."""
        ...

    async def receipt(self) -> Receipt:
        """Return the receipt, or raise NotAppliedError."""
        ...


async def with_receipt(events: AsyncIterator[str], call: Call) -> AsyncIterator[str]:
    """
    Pass a stream of server-sent events on, adding the receipt to the last chunk.

    A chunk that may be the last is held back until the next event shows whether it was; all others pass at once. If the
    engine did not steer the request, the last chunk is replaced by an error event.
    """
    held: str | None = None
    failed = False
    async for event in events:
        if event.startswith(DONE):
            if not failed:
                yield await _last_chunk(held, call)
            yield event
            return
        if held is not None:
            yield held
        held = event if _may_be_last(event) else None
        failed = failed or event.startswith('data: {"error"')
        if held is None:
            yield event
    if not failed:
        yield await _last_chunk(held, call)


def _may_be_last(event: str) -> bool:
    """Does a choice end here, or is this the chunk of usage figures?"""
    return event.startswith("data: {") and ('"finish_reason":"' in event or '"choices":[]' in event)


async def _last_chunk(held: str | None, call: Call) -> str:
    try:
        receipt = await call.receipt()
        if held is None:
            raise NotAppliedError("the stream ended without a last chunk.")
    except NotAppliedError as exc:
        return _event(exc.body())
    if not call.wants_receipt:
        return held
    return _event(json.loads(held.removeprefix("data: ")) | {"steering": receipt.model_dump(mode="json")})


def _event(body: object) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"
