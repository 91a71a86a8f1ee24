"""Answers of endpoints that take long: JSON at the end, or server-sent events that say how far it is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request, Response
from starlette.types import Message, Receive, Scope, Send

from saeclamp.types import Answer, Progress
from saeclamp_server.api.disconnect import cancelled, hung_up
from saeclamp_server.api.model_client import ModelClient
from saeclamp_server.api.model_share import ModelShare
from saeclamp_server.api.progress import ProgressCounter
from saeclamp_server.api.state import state_of
from saeclamp_server.errors import RequestError, ServerFailedError
from saeclamp_server.threads import run_computation

EVENTS = "text/event-stream"
OPENS_AFTER_S = 1.0
"""Seconds until events begin: a refusal before has its own HTTP status, and one after, as the 200 is out, is an event."""
EVERY_S = 0.5
"""Seconds between two reports of progress, where there is any."""

PROGRESS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": f"The answer; with 'Accept: {EVENTS}' events: progress, and at the end the result or an error",
        "content": {EVENTS: {"schema": {"type": "string"}}},
    }
}
"""OpenAPI responses of an endpoint that may stream, which FastAPI cannot tell from the function."""

SILENT_S = 15
"""Seconds after which it is reported again, as proxies end connections on which nothing is sent."""

Ask = Callable[[ModelClient, ProgressCounter], Awaitable[Answer]]
"""Answers a request with the model, and counts its steps."""


async def answer_long(
    request: Request, ask: Ask, *, opens_after_s: float = OPENS_AFTER_S, every_s: float = EVERY_S
) -> Response:
    """Answer as the request's `Accept` wants it. Raises RequestError."""
    counter = ProgressCounter()
    state = state_of(request.app)
    share = ModelShare(state.model, state.cells, counter)
    work = asyncio.ensure_future(_written(ask, share, counter))
    try:
        if EVENTS not in request.headers.get("accept", ""):
            return Response(await work, media_type="application/json")
        await asyncio.wait((work,), timeout=opens_after_s)
        if work.done():
            work.result()  # raises the refusal
    except BaseException:
        await cancelled(work)
        raise
    return EventsResponse(work, counter, every_s)


async def _written(ask: Ask, share: ModelShare, counter: ProgressCounter) -> bytes:
    answer = await ask(share, counter)
    return (await run_computation(answer.model_dump_json, by_alias=True)).encode()


class EventsResponse(Response):
    """
    Events of a request: `progress`, and at the end `result` or `error`. Its work ends when the client hangs up.

    Starlette's StreamingResponse would be told of that only when it sends.
    """

    media_type = EVENTS

    def __init__(self, work: asyncio.Future[bytes], counter: ProgressCounter, every_s: float) -> None:
        # nginx, which would else keep events until there are more of them, goes by the second one
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._work, self._counter, self._every_s = work, counter, every_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the work is done, or nobody listens any more."""
        gone = asyncio.create_task(hung_up(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            seen: Progress | None = None
            num_silent = 0
            while not self._work.done():
                num_silent += 1
                if self._counter.now != seen or num_silent * self._every_s >= SILENT_S:
                    seen, num_silent = self._counter.now, 0
                    await send(_event(seen.model_dump_json().encode(), more=True))
                await asyncio.wait((self._work, gone), timeout=self._every_s, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    return
            await send(_event(self._last(), more=False))
        finally:
            await cancelled(self._work, gone)
        error = self._work.exception()
        if error is not None and not isinstance(error, RequestError):
            raise error  # for the log

    def _last(self) -> bytes:
        error = self._work.exception()
        if error is None:
            return b'{"type":"result","result":' + self._work.result() + b"}"
        refusal = error if isinstance(error, RequestError) else ServerFailedError()
        return json.dumps({"type": "error", "status": refusal.status, **refusal.body()}).encode()


def _event(data: bytes, more: bool) -> Message:
    return {"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": more}
