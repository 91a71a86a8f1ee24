"""Errors of every endpoint in the form that its clients read: OpenAI's, and on `/v1/messages` Anthropic's."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saeclamp_server.api.access import route_path
from saeclamp_server.api.error_fields import field_named

ANTHROPIC_PATH = "/v1/messages"
STREAMS = ("/v1/chat/completions", "/v1/completions")
STREAM_ERROR = b'data: {"error"'

OPENAI_CODES = {
    400: "invalid_request",
    401: "invalid_api_key",
    404: "not_found",
    405: "method_not_allowed",
    413: "request_too_large",
    503: "unavailable",
}
"""Codes of errors that come without one, or with vLLM's, which repeats the status."""

ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}

_VALUES = re.compile(r" \(parameter=\w+(, value=.*)?\)$", re.DOTALL)
"""Suffix that vLLM adds to messages: the value may be as long as the request."""


class ErrorEnvelope:
    """
    ASGI middleware outside of all others, since authentication and the router answer with errors of their own too.

    A success passes as it is; the body of an error is written anew. A request without an `x-request-id` gets one, by which
    vLLM then names the answer too.
    """

    def __init__(self, app: ASGIApp, max_kept: int) -> None:
        """Keep bodies of so many bytes, for errors about one of their fields."""
        self._app, self._max_kept = app, max_kept

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and its answer."""
        # an answer to HEAD has no body to be written anew
        if scope["type"] != "http" or scope["method"] == "HEAD":
            return await self._app(scope, receive, send)
        scope = _named(scope)
        asked, answer = _BufferedRequest(receive, self._max_kept), _BufferedResponse(send, scope)
        answer.asked = asked
        await self._app(scope, asked.receive, answer.send)


def _named(scope: Scope) -> Scope:
    if any(name == b"x-request-id" for name, _ in scope["headers"]):
        return scope
    return {**scope, "headers": [*scope["headers"], (b"x-request-id", uuid.uuid4().hex.encode())]}


class _BufferedRequest:
    """A request's body, kept until it is clear that the answer is no error, which may be about one of its fields."""

    def __init__(self, receive: Receive, max_kept: int) -> None:
        self._receive, self._parts = receive, list[bytes]()
        self.is_kept, self._room = True, max_kept

    async def receive(self) -> Message:
        message = await self._receive()
        if self.is_kept and message["type"] == "http.request":
            self._parts.append(message.get("body", b""))
            self._room -= len(self._parts[-1])
            if self._room < 0:
                self.forget()
        return message

    def forget(self) -> None:
        self.is_kept = False
        self._parts.clear()

    def fields(self) -> dict[str, Any]:
        try:
            body = json.loads(b"".join(self._parts))
        except (ValueError, RecursionError):
            return {}
        return body if isinstance(body, dict) else {}


class _BufferedResponse:
    """Holds an error back until it is whole."""

    asked: _BufferedRequest

    def __init__(self, send: Send, scope: Scope) -> None:
        self._send, self._path = send, path_of(scope)
        self._start: Message | None = None
        self._content = b""
        self._is_openai_stream = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if message["status"] >= 400 and _is_message(message, self._path):
                self._start = message
                return
            self.asked.forget()
            self._is_openai_stream = self._path in STREAMS
        elif self._is_openai_stream and message.get("body", b"").startswith(STREAM_ERROR):
            message = {**message, "body": _stream_error(message["body"])}
        if self._start is None or message["type"] != "http.response.body":
            return await self._send(message)
        self._content += message.get("body", b"")
        if message.get("more_body", False):
            return
        headers = MutableHeaders(raw=list(self._start["headers"]))
        status: int = self._start["status"]
        error = openai_error(status, self._content, self.asked.fields)
        content = json.dumps(written(error, status, self._path, headers.get("x-request-id"))).encode()
        headers["content-length"], headers["content-type"] = str(len(content)), "application/json"
        await self._send({**self._start, "headers": headers.raw})
        await self._send({"type": "http.response.body", "body": content})


def _stream_error(event: bytes) -> bytes:
    """Write the event by which vLLM ends a stream as OpenAI's clients read it."""
    data, end, rest = event.removeprefix(b"data: ").partition(b"\n\n")
    try:
        code = json.loads(data)["error"].get("code")
    except (ValueError, AttributeError):
        return event
    error = openai_error(code if isinstance(code, int) else 500, data, dict)
    return b"data: " + json.dumps({"error": error}).encode() + end + rest


def path_of(scope: Scope) -> str:
    """Return the path by which a request is routed, without a slash at its end."""
    return route_path(scope).rstrip("/")


def is_anthropic(path: str) -> bool:
    """Tell whether a path's clients read Anthropic's errors."""
    return path == ANTHROPIC_PATH or path.startswith(f"{ANTHROPIC_PATH}/")


def written(error: Mapping[str, Any], status: int, path: str, request_id: str | None = None) -> dict[str, Any]:
    """
    Write an error as the clients of a path read it.

    error: message, type, param and code, as OpenAI has them; Anthropic's clients ignore the last two
    """
    if not is_anthropic(path):
        return {"error": dict(error)}
    kind = ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    named = {"request_id": request_id} if request_id else {}
    return {"type": "error", "error": {**error, "type": kind}, **named}


def _is_message(start: Message, path: str) -> bool:
    """Tell whether an error says anything: probes such as `/health` answer with a status alone."""
    kind = dict(start.get("headers", ())).get(b"content-type", b"")
    return b"json" in kind or (path.startswith("/v1/") and kind.startswith(b"text/plain"))


def openai_error(status: int, content: bytes, fields: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """
    Read an error of ours, vLLM's or the framework's, and write it as OpenAI does.

    fields: of the request's body
    """
    try:
        body = json.loads(content)
    except ValueError:
        body = content.decode(errors="replace")
    found = body.get("error", body.get("detail", body.get("message"))) if isinstance(body, dict) else body
    said: Mapping[str, Any] = found if isinstance(found, dict) else {"message": found}
    message = said.get("message")
    message = _VALUES.sub("", message) if isinstance(message, str) and message else HTTPStatus(status).phrase
    code, param = said.get("code"), said.get("param")
    if isinstance(code, str):  # ours
        return {"message": message, "type": said.get("type"), "param": param, "code": code}
    if status < 500:
        param = field_named(message, param, fields())
    known = OPENAI_CODES.get(status, "invalid_request" if status < 500 else "internal_error")
    return {
        "message": message,
        "type": "rate_limit_error" if status == 429 else "invalid_request_error" if status < 500 else "server_error",
        "param": param,
        "code": "model_not_found" if status == 404 and param == "model" else known,
    }
