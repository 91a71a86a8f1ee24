"""The end of a server, seen from HTTP: `/ready`, what is refused from then on, and what is still being answered."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from saeclamp_server.api.access import PUBLIC, route_path
from saeclamp_server.api.state import state_of
from saeclamp_server.errors import EngineGoneError, RequestError, StoppingError

router = APIRouter()
ANSWERED_TO_THE_END = PUBLIC | {"/metrics"}
"""Paths of those who watch a server."""


class Drain:
    """The end of a server: whether it still takes requests, and how many it is answering."""

    def __init__(self) -> None:
        self.is_draining = False
        self.num_running = 0
        self._changed = asyncio.Event()

    def begin(self) -> None:
        """Take no more requests."""
        self.is_draining = True

    def enter(self) -> None:
        """Count a request."""
        self.num_running += 1

    def leave(self) -> None:
        """Count its answer, whose last byte has left."""
        self.num_running -= 1
        self._changed.set()

    async def wait(self, seconds: float) -> bool:
        """Wait until all requests are answered; tell whether they are, or the time is over."""
        try:
            async with asyncio.timeout(seconds):
                while self.num_running:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True


class DrainGuard:
    """ASGI middleware that counts requests, and refuses those that come too late."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self._app, self._drain = app, drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse with 503 and close the connection, so that the client's next one goes elsewhere."""
        if scope["type"] not in ("http", "websocket") or route_path(scope) in ANSWERED_TO_THE_END:
            return await self._app(scope, receive, send)
        if self._drain.is_draining:
            return await _refusal(StoppingError(), {"Connection": "close"})(scope, receive, send)
        self._drain.enter()
        try:
            await self._app(scope, receive, send)
        finally:
            self._drain.leave()


@router.head("/ready", response_model=None, include_in_schema=False)
@router.get("/ready", response_model=None)
async def ready(request: Request) -> JSONResponse:
    """
    Tell whether requests should be sent here: 200 from the first to the last that is taken, 503 after it.

    A database that does not answer is said and no reason: all servers have it in common, and most requests do without.
    """
    state = state_of(request.app)
    if state.drain.is_draining:
        return _refusal(StoppingError())
    if state.vllm.engine_client.errored:
        return _refusal(EngineGoneError())
    return JSONResponse({"status": "ready", "database": "ok" if state.database.is_up else "unavailable"})


def _refusal(error: RequestError, more_headers: Mapping[str, str] | None = None) -> JSONResponse:
    # answered here and not raised, because what watches a server is not counted among refused requests
    return JSONResponse(error.body(), error.status, {"Retry-After": str(error.retry_after_s), **(more_headers or {})})
