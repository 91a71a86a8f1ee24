"""Errors of every endpoint in the form that its clients read: OpenAI's, and on `/v1/messages` Anthropic's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saeclamp_server.errors import InvalidRequestError, RequestError
from saeclamp_server.openai_api.metrics import REFUSALS
from saeclamp_server.request_body import json_path

ANTHROPIC_PATH = "/v1/messages"

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

FIELDS_OF = {
    "structured_outputs": ("structured_outputs", "response_format", "text", "output_config", "tools"),
    "messages": ("messages", "input", "prompt"),
    "logprobs": ("top_logprobs", "logprobs"),
    "max_tokens": ("max_completion_tokens", "max_output_tokens", "max_tokens"),
    "stop": ("stop", "stop_sequences"),
}
"""What vLLM names, and the fields by which endpoints take it, the likeliest first."""

ABOUT_THE_PROMPT = re.compile(
    r"prompt|conversation|chat template|multimodal|input length|context length|ValidatorIterator"
)


class ErrorEnvelope:
    """
    ASGI middleware outside of all others, since authentication and the router answer with errors of their own too.

    A success passes as it is; the body of an error is written anew.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and its answer."""
        if scope["type"] != "http" or scope["method"] == "HEAD":
            return await self._app(scope, receive, send)
        asked, answer = _Asked(receive), _Answer(send, scope)
        answer.asked = asked
        await self._app(scope, asked.receive, answer.send)


class _Asked:
    """A request's body, kept until it is clear that the answer is no error, which may be about one of its fields."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._parts = receive, list[bytes]()
        self.is_kept = True

    async def receive(self) -> Message:
        message = await self._receive()
        if self.is_kept and message["type"] == "http.request":
            self._parts.append(message.get("body", b""))
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


class _Answer:
    """Holds an error back until it is whole."""

    asked: _Asked

    def __init__(self, send: Send, scope: Scope) -> None:
        self._send, self._path = send, path_of(scope)
        self._start: Message | None = None
        self._content = b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if message["status"] >= 400 and _is_message(message, self._path):
                self._start = message
                return
            self.asked.forget()
        if self._start is None or message["type"] != "http.response.body":
            return await self._send(message)
        self._content += message.get("body", b"")
        if message.get("more_body", False):
            return
        headers = MutableHeaders(raw=list(self._start["headers"]))
        status: int = self._start["status"]
        error = _openai_error(status, self._content, self.asked.fields)
        content = json.dumps(written(error, status, self._path, headers.get("x-request-id"))).encode()
        headers["content-length"], headers["content-type"] = str(len(content)), "application/json"
        await self._send({**self._start, "headers": headers.raw})
        await self._send({"type": "http.response.body", "body": content})


def path_of(scope: Scope) -> str:
    """Return the path below the one at which the app is mounted, without a slash at its end."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")).rstrip("/")


def is_anthropic(path: str) -> bool:
    """Whether a path's clients read Anthropic's errors."""
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
    """Whether an error says anything: probes such as `/health` answer with a status alone."""
    kind = dict(start.get("headers", ())).get(b"content-type", b"")
    return b"json" in kind or (path.startswith("/v1/") and kind.startswith(b"text/plain"))


def _openai_error(status: int, content: bytes, fields: Any) -> dict[str, Any]:
    try:
        body = json.loads(content)
    except ValueError:
        body = content.decode(errors="replace")
    found = body.get("error", body.get("detail", body.get("message"))) if isinstance(body, dict) else body
    said: Mapping[str, Any] = found if isinstance(found, dict) else {"message": found}
    message = said.get("message")
    message = message if isinstance(message, str) and message else HTTPStatus(status).phrase
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


def field_named(message: str, param: Any, fields: Iterable[str]) -> str | None:
    """
    Find the field that an error of vLLM's is about, in the words of the request.

    param:  vLLM's, which may be the name of a sampling parameter
    fields: of the request
    """
    names = [name for name in fields if name.isidentifier() and not name.startswith("_")]
    if isinstance(param, str) and param:
        path = param.removeprefix("body.")
        return next((name for name in FIELDS_OF.get(path, ()) if name in names), path)
    places = [(found.start(), name) for name in names if (found := re.search(rf"\b{name}\b", message))]
    if places:
        return min(places)[1]
    about = "messages" if ABOUT_THE_PROMPT.search(message) else None
    if about is None and re.search(r"\bmodel\b", message):
        return "model"
    return next((name for name in FIELDS_OF.get(about or "", ()) if name in names), None)


async def refuse(request: Request, exc: Exception) -> JSONResponse:
    """Answer with a refusal of ours."""
    assert isinstance(exc, RequestError)
    if exc.status < 500:
        REFUSALS.labels(exc.code).inc()
    return response_of(exc)


def response_of(exc: RequestError) -> JSONResponse:
    """Return an error as it is sent, still in OpenAI's form."""
    retry = {"Retry-After": str(exc.retry_after_s)} if exc.retry_after_s is not None else None
    return JSONResponse(exc.body(), exc.status, retry)


async def http_error(request: Request, exc: Exception) -> JSONResponse:
    """Answer with the framework's own errors: 404, 405, an unreadable body."""
    assert isinstance(exc, HTTPException)
    return JSONResponse({"error": {"message": str(exc.detail)}}, exc.status_code, headers=exc.headers)


async def invalid(request: Request, exc: Exception) -> JSONResponse:
    """Say what of a body does not fit vLLM's request class, and where."""
    assert isinstance(exc, RequestValidationError)
    errors: Sequence[Any] = exc.errors()
    first = errors[0] if errors else "The request is malformed."
    if not isinstance(first, Mapping):
        return response_of(InvalidRequestError(str(first), None))
    # of the branches of a union the one that got furthest is the one that was meant
    paths = [_path_to(error, exc.body) for error in errors]
    path = max(paths, key=lambda one: one.count(".") + one.count("["))
    error = errors[paths.index(path)]
    said = str(error["msg"]).removeprefix("Value error, ").replace("Input", "The value", 1).rstrip(".")
    if error["type"] == "json_invalid":
        said = f"The body is not JSON: {error.get('ctx', {}).get('error', said)}"
    return response_of(InvalidRequestError(f"{path}: {said}." if path else f"{said}.", path or None))


def _path_to(error: Mapping[str, Any], body: Any) -> str:
    where, *rest = error["loc"]
    if error["type"] == "json_invalid":
        return ""
    return json_path(tuple(rest), body if where == "body" else {str(part): None for part in rest[:1]}, "")


async def unexpected(request: Request, exc: Exception) -> JSONResponse:
    """Answer in the right form where something broke: the framework sends this from outside of all middleware."""
    error = {"message": "Internal server error", "type": "server_error", "param": None, "code": "internal_error"}
    return JSONResponse(written(error, 500, path_of(request.scope)), 500)
