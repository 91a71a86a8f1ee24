"""Bodies that are too large are refused before anything reads them: parsing one would stop the server for everybody."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saeclamp_server.api.error_envelope import path_of
from saeclamp_server.api.error_handlers import response_of
from saeclamp_server.api.metrics import REFUSALS
from saeclamp_server.errors import BodyTooLargeError

MEGABYTE = 1 << 20
OWN_PATHS = ("/v1/features/", "/v1/steering/", "/v1/variants", "/v1/vectors/derive")
"""
Beginnings of our own endpoints' paths that read bodies of JSON: they refuse what they do not know themselves, and what is
larger than they can use, and parse it beside the event loop.
"""


class BodyLimit:
    """ASGI middleware that refuses larger bodies than vLLM's endpoints are to be given."""

    def __init__(self, app: ASGIApp, max_megabytes: int) -> None:
        self._app, self._megabytes = app, max_megabytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is small enough. A body that does not say its length is read before it is passed on."""
        if scope["type"] != "http" or path_of(scope).startswith(OWN_PATHS):
            return await self._app(scope, receive, send)
        headers, limit = Headers(scope=scope), self._megabytes * MEGABYTE
        is_chunked, length = "transfer-encoding" in headers, headers.get("content-length", "0")
        # where both are given, the server goes by the chunks; else it reads no more than the length
        if not is_chunked and length.isdecimal() and int(length) <= limit:
            return await self._app(scope, receive, send)
        waits = not is_chunked and headers.get("expect", "").lower() == "100-continue"
        messages, size = ([], int(length)) if waits else await read_messages(receive, limit)
        if messages and messages[-1]["type"] != "http.request":
            return None  # the client has gone
        if size <= limit:
            return await self._app(scope, replay(messages, receive), send)
        error = BodyTooLargeError(
            f"The body has {size} bytes; this server takes at most {limit} (--max-body {self._megabytes}).", None
        )
        REFUSALS.labels(error.code).inc()
        await response_of(error)(scope, receive, send)


async def read_messages(receive: Receive, limit: int | None = None) -> tuple[list[Message], int]:
    """
    Read the messages of a body, and count its bytes.

    limit: a larger body is read to its end, or the refusal might not arrive, but not kept; None: any is kept
    """
    messages, size = list[Message](), 0
    while True:
        message = await receive()
        size += len(message.get("body", b""))
        if limit is not None and size > limit:
            messages.clear()
        messages.append(message)
        if message["type"] != "http.request" or not message.get("more_body"):
            return messages, size


def replay(messages: list[Message], receive: Receive) -> Receive:
    """Hand over again what was read, and then what comes after it, such as the client's going."""
    remaining = iter(messages)

    async def replayed() -> Message:
        message = next(remaining, None)
        return message if message is not None else await receive()

    return replayed
