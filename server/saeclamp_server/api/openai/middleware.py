"""Steer on vLLM's own endpoints that generate, and refuse `steering` on all others, which would ignore it."""

from __future__ import annotations

from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saeclamp.types import Steering
from saeclamp_server.api.body_limit import OWN_PATHS, read_messages, replay
from saeclamp_server.api.error_envelope import path_of
from saeclamp_server.api.error_handlers import response_of
from saeclamp_server.api.metrics import REFUSALS
from saeclamp_server.api.openai import responses_and_messages
from saeclamp_server.api.openai.requested_model import RequestedModel
from saeclamp_server.api.openai.steered_call import SteeredCall
from saeclamp_server.api.state import state_of
from saeclamp_server.api.steering_body import check_encoding, parse_body, refuse_many_values, steering_of
from saeclamp_server.api.strictness.foreign_shapes import refuse_lookalikes
from saeclamp_server.api.strictness.misplaced_steering import refuse_headers, refuse_model_in_query, refuse_query
from saeclamp_server.api.strictness.stray_names import refuse_loaded_names
from saeclamp_server.errors import InvalidSteeringError, RequestError

STEERED_PATHS = ("/v1/chat/completions", "/v1/completions")
COUNTING_PATHS = ("/tokenize", "/detokenize", "/v1/messages/count_tokens")
"""Endpoints that give the same for a variant as for its base, since steering changes no prompt."""
_USE = f"use {' or '.join((*STEERED_PATHS, *responses_and_messages.PATHS))}."


class SteeringMiddleware:
    """
    ASGI middleware over vLLM's other endpoints (`/v1/responses`, `/v1/messages`, `/tokenize`, ...).

    They ignore unknown keys, so a body that asks for steering gets it here, or is refused. Bodies of all endpoints must be
    plain UTF-8.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on everything but a JSON POST that asks for steering in vain."""
        if scope["type"] != "http" or scope["method"] != "POST" or not _is_json(scope):
            return await self._app(scope, receive, send)
        path, encoding = path_of(scope), Headers(scope=scope).get("content-encoding", "")
        messages, body, call, base = list[Message](), dict[str, Any](), None, None
        try:
            check_encoding(b"", encoding)
            refuse_headers(scope["headers"])
            if not path.startswith(OWN_PATHS):  # which bound what they read, and check it
                messages, _ = await read_messages(receive)
                content = b"".join(message.get("body", b"") for message in messages)
                check_encoding(content)
                refuse_many_values(content)
                refuse_query(scope["query_string"])
                if path not in STEERED_PATHS:
                    body = _object(content)
                    call = await _begun(body, scope)
                    base = await _base_of_variant(body, scope) if call is None else None
        except RequestError as exc:
            REFUSALS.labels(exc.code).inc()
            return await response_of(exc)(scope, receive, send)
        if call is not None:
            return await responses_and_messages.answer(self._app, scope, receive, send, body, call)
        if base is not None:
            return await responses_and_messages.passed_on(self._app, scope, receive, send, {**body, "model": base})
        await self._app(scope, replay(messages, receive), send)


def _is_json(scope: Scope) -> bool:
    return any(name == b"content-type" and b"json" in value.lower() for name, value in scope["headers"])


def _object(content: bytes) -> dict[str, Any]:
    """Read a body; what is no object is passed on as it is, and the endpoint says what is wrong. Raises RequestError."""
    try:
        value = parse_body(content)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


async def _begun(body: dict[str, Any], scope: Scope) -> SteeredCall | None:
    """Begin the call of a body that steers, on an endpoint that can; None for one that does not. Raises RequestError."""
    path = path_of(scope)
    refuse_model_in_query(scope["query_string"], body)
    steering: Steering | None = None
    if path in responses_and_messages.PATHS:
        steering = steering_of(body, path)
    else:
        refuse_lookalikes(body, path)
    await refuse_loaded_names(body, scope)
    if path in responses_and_messages.PATHS:
        return await responses_and_messages.steered(body, steering, scope)
    if body.get("steering") is not None:
        raise InvalidSteeringError(f"{path} does not support 'steering'; {_USE}", "steering")
    return None


async def _base_of_variant(body: dict[str, Any], scope: Scope) -> str | None:
    """
    Return the base of the variant for which tokens are to be counted; None where no variant is named.

    Raises RequestError where there is none such, and for endpoints that would answer as the base does.
    """
    model, path = body.get("model"), path_of(scope)
    if not isinstance(model, str):
        return None
    asked = await RequestedModel.find(state_of(scope["app"]), model, None)
    if asked.steers and path not in COUNTING_PATHS:
        raise InvalidSteeringError(f"{path} does not steer, so no variant can answer there; {_USE}", "model")
    return asked.base if asked.steers else None
