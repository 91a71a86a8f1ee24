"""
Completing the answers of steered calls: each gets its receipt, or an error takes its place.

In a stream the receipt rides inside the last ordinary chunk before `[DONE]`, as openai-python mangles named events.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from fastapi.responses import JSONResponse, Response

from saeclamp.types import Receipt
from saeclamp_server.api.openai.receipt_headers import headers_of
from saeclamp_server.errors import NotAppliedError

DONE = "data: [DONE]"
ERROR = 'data: {"error"'
"""Beginning of the event by which vLLM ends a stream that has no answer."""


class Call(Protocol):
    """The part of a steered call that this module needs."""

    @property
    def spec(self) -> str:
        """Hash that names the resolved steering."""
        ...

    @property
    def wants_receipt(self) -> bool:
        """True if the receipt is to be sent."""
        ...

    @property
    def completes(self) -> bool:
        """True if chunks are to show more than vLLM writes into them; else they pass as they are."""
        ...

    def complete(self, body: dict[str, Any]) -> None:
        """Write into a chunk what it is to show beside vLLM's own."""
        ...

    async def receipt(self) -> Receipt:
        """Return the receipt, or raise NotAppliedError."""
        ...

    def aborted(self, receipt: Receipt) -> set[int]:
        """Return the choices that a rule has ended."""
        ...

    def failed(self, message: str) -> None:
        """Note why there is no answer."""
        ...

    def end(self) -> None:
        """Release the call's admission and tracking. Idempotent."""
        ...


def embed_receipt(body: dict[str, Any], call: Call, receipt: Receipt) -> dict[str, Any]:
    """Add the receipt to an answer, or to what ends a stream, where the request wants it."""
    return body | {"steering": receipt.model_dump(mode="json")} if call.wants_receipt else body


async def complete_response(response: Response, call: Call) -> Response:
    """Complete an answer that came in one piece. Raises NotAppliedError."""
    receipt = await call.receipt()
    body = json.loads(bytes(response.body))
    call.complete(body)
    headers = {
        name: value for name, value in response.headers.items() if name not in ("content-length", "content-type")
    }
    return JSONResponse(embed_receipt(body, call, receipt), headers=headers | headers_of(call.spec, receipt))


async def complete_stream(
    events: AsyncIterator[str], call: Call, empty_chunk: Callable[[int], dict[str, Any]]
) -> AsyncIterator[str]:
    """
    Pass a stream of server-sent events on, completing each chunk and adding the receipt to the last one.

    A chunk that may be the last is held back until the next event shows whether it was; all others pass at once. If the
    engine did not steer the request, the last chunk is replaced by an error event.

    empty_chunk: makes a chunk of a choice that ended without a token, of which vLLM sends none
    """
    held: str | None = None
    failed, ended = False, set[int]()
    try:
        async for event in events:
            if event.startswith(DONE):
                if not failed:
                    async for last in _last_chunks(held, call, ended, empty_chunk):
                        yield last
                yield event
                return
            if held is not None:
                yield held
            event = _completed(event, call, ended)
            held = event if _may_be_last(event) else None
            if event.startswith(ERROR):
                failed = True
                call.failed(str(json.loads(event.removeprefix("data: "))["error"].get("message")))
            if held is None:
                yield event
        if not failed:
            async for last in _last_chunks(held, call, ended, empty_chunk):
                yield last
    finally:
        call.end()


def _completed(event: str, call: Call, ended: set[int]) -> str:
    """Complete a chunk, and note which choices end in it."""
    if not call.completes or not event.startswith('data: {"id"'):
        return event
    body = json.loads(event.removeprefix("data: "))
    call.complete(body)
    ended |= {choice["index"] for choice in body["choices"] if choice.get("finish_reason") is not None}
    return _event(body)


def _may_be_last(event: str) -> bool:
    """Tell whether a choice ends in this chunk, or it is the chunk of usage counts."""
    # by the text that vLLM writes (an unfinished choice has null there), so that most chunks need no parsing
    return event.startswith("data: {") and ('"finish_reason":"' in event or '"choices":[]' in event)


async def _last_chunks(
    held: str | None, call: Call, ended: set[int], empty_chunk: Callable[[int], dict[str, Any]]
) -> AsyncIterator[str]:
    try:
        receipt = await call.receipt()
        without = [empty_chunk(choice) for choice in sorted(call.aborted(receipt) - ended)]
        for chunk in without:
            call.complete(chunk)
        for chunk in without[: None if held is not None else -1]:
            yield _event(chunk)
        if held is None and not without:
            call.failed("The stream ended without a last chunk.")
            raise NotAppliedError("the stream ended without a last chunk.")
        last = json.loads(held.removeprefix("data: ")) if held is not None else without[-1]
    except NotAppliedError as exc:
        yield _event(exc.body())
        return
    yield _event(embed_receipt(last, call, receipt))


def _event(body: object) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"
