"""Refuse `steering` on endpoints that would ignore it."""

from __future__ import annotations

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saeclamp_server.errors import InvalidSteeringError, RequestError
from saeclamp_server.openai_api.metrics import REFUSALS
from saeclamp_server.request_body import parse_body, refuse_lookalikes

STEERED_PATHS = ("/v1/chat/completions", "/v1/completions")


class SteeringGuard:
    """
    ASGI middleware over vLLM's other endpoints (`/v1/responses`, `/v1/messages`, ...).

    They ignore unknown keys, so a body that asks for steering there must be refused.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on everything but a JSON POST that asks for steering in vain."""
        if scope["type"] != "http" or scope["method"] != "POST" or _is_steered(scope) or not _is_json(scope):
            return await self._app(scope, receive, send)
        messages, body = await _read(receive)
        try:
            _refuse(body, scope["path"])
        except RequestError as exc:
            REFUSALS.labels(exc.code).inc()
            return await JSONResponse(exc.body(), exc.status)(scope, receive, send)
        await self._app(scope, _replay(messages, receive), send)


def _is_steered(scope: Scope) -> bool:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")).rstrip("/") in STEERED_PATHS


def _is_json(scope: Scope) -> bool:
    return any(name == b"content-type" and b"json" in value.lower() for name, value in scope["headers"])


async def _read(receive: Receive) -> tuple[list[Message], bytes]:
    messages: list[Message] = []
    while True:
        messages.append(await receive())
        if messages[-1]["type"] != "http.request" or not messages[-1].get("more_body"):
            return messages, b"".join(message.get("body", b"") for message in messages)


def _refuse(body: bytes, path: str) -> None:
    try:
        value = parse_body(body)
    except (ValueError, RecursionError):
        return  # the endpoint says what is wrong with it
    if not isinstance(value, dict):
        return
    refuse_lookalikes(value)
    if value.get("steering") is not None:
        raise InvalidSteeringError(
            f"{path} does not support 'steering' yet; use {' or '.join(STEERED_PATHS)}.", "steering"
        )


def _replay(messages: list[Message], receive: Receive) -> Receive:
    remaining = iter(messages)

    async def replay() -> Message:
        message = next(remaining, None)
        return message if message is not None else await receive()

    return replay
