"""Answers to exceptions, in OpenAI's form: `error_envelope` gives them to those who read another in theirs."""

from __future__ import annotations

import logging
import traceback
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.exceptions import GenerationError

from saeclamp.types.refusals import but_not, json_path
from saeclamp_server.api.error_envelope import openai_error, path_of, written
from saeclamp_server.api.metrics import REFUSALS
from saeclamp_server.api.strictness.path_suggestions import not_found
from saeclamp_server.errors import DatabaseUnavailableError, InvalidRequestError, RequestError
from saeclamp_server.vllm_compat import unsaid_error

logger = logging.getLogger(__name__)

UNREADABLE = "The body cannot be read: it is nested too deeply, or has a number of thousands of digits."


async def refuse(request: Request, exc: Exception) -> JSONResponse:
    """Answer with a refusal of ours."""
    assert isinstance(exc, RequestError)
    if exc.status < 500 or isinstance(exc, DatabaseUnavailableError):
        REFUSALS.labels(exc.code).inc()
    return response_of(exc)


def response_of(exc: RequestError) -> JSONResponse:
    """Return an error as it is sent, still in OpenAI's form."""
    retry = {"Retry-After": str(exc.retry_after_s)} if exc.retry_after_s is not None else None
    return JSONResponse(exc.body(), exc.status, retry)


async def http_error(request: Request, exc: Exception) -> JSONResponse:
    """Answer with the framework's own errors: 405, an unreadable body; and 404, where it says no more than that."""
    assert isinstance(exc, HTTPException)
    message = UNREADABLE if exc.detail == "There was an error parsing the body" else str(exc.detail)
    if (exc.status_code, exc.detail) == (404, "Not Found"):  # the router's own
        message = not_found(request.app.routes, request.scope)
    return JSONResponse({"error": {"message": message}}, exc.status_code, headers=exc.headers)


async def invalid(request: Request, exc: Exception) -> JSONResponse:
    """Say what of a body does not fit vLLM's request class, and where."""
    assert isinstance(exc, RequestValidationError)
    errors: Sequence[Any] = exc.errors()
    first = errors[0] if errors else "The request is malformed."
    if not isinstance(first, Mapping):
        return response_of(InvalidRequestError(str(first), None))
    # of the branches of a union the one that got furthest is the one that was meant: vLLM's unions, unlike ours, have no
    # discriminator that would say it
    paths = [_path_to(error, exc.body) for error in errors]
    path = max(paths, key=lambda one: one.count(".") + one.count("["))
    error = errors[paths.index(path)]
    said = str(error["msg"]).removeprefix("Value error, ").replace("Input", "The value", 1).rstrip(".")
    if error["type"] == "json_invalid":
        said = f"The body is not JSON: {error.get('ctx', {}).get('error', said)}"
    elif not path and error["type"] != "value_error":
        said = "The body must be a JSON object"
    elif error["type"] not in ("value_error", "extra_forbidden"):
        said += but_not(error.get("input"))
    return response_of(InvalidRequestError(f"{path}: {said}." if path else f"{said}.", path or None))


def _path_to(error: Mapping[str, Any], body: Any) -> str:
    where, *rest = error["loc"]
    if error["type"] == "json_invalid":
        return ""
    return json_path(tuple(rest), body if where == "body" else {str(part): None for part in rest[:1]}, "")


BROKEN = (AttributeError, LookupError, AssertionError, RecursionError)
"""
Exceptions in which vLLM's checks of a body end where they trust what they read, and mistakes of a server too. They are
answered by name, because the framework ends the connection after any other one.
"""


async def broken(request: Request, exc: Exception) -> JSONResponse:
    """Answer 400 where a body was being checked, and 500 where it had been."""
    frames = [frame.f_code.co_name for frame, _ in traceback.walk_tb(exc.__traceback__)]
    if "request_body_to_args" not in frames:
        logger.error("Request failed", exc_info=exc)
        return await unexpected(request, exc)
    body = await request.json()
    names = [name for name in body if len(name) > 3] if isinstance(body, Mapping) else []
    checks = reversed(frames[frames.index("request_body_to_args") + 1 :])  # vLLM names each by what it checks
    param = next((name for check in checks for name in names if name in check), None)
    said = f"{param}: the value is of the wrong type or form" if param else "The request is malformed"
    return response_of(InvalidRequestError(f"{said} ({exc}).", param))


async def unexpected(request: Request, exc: Exception) -> JSONResponse:
    """Answer in the right form where something broke: the framework sends this from outside of all middleware."""
    said = create_error_response(exc)
    status = int(said.error.code)
    error = openai_error(status, said.model_dump_json().encode(), dict)
    return JSONResponse(written(error, status, path_of(request.scope)), status)


def say_errors_in_messages(state: Any) -> None:
    """
    Have streams of `/v1/messages` say what went wrong.

    vLLM makes them from those of chat completions, and 0.32 says of an error there only that it is no chunk.

    state: vLLM's app state
    """
    handler = state.anthropic_serving_messages
    if handler is None:
        return
    convert = handler.message_stream_converter

    async def raised(events: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for event in events:
            if (said := unsaid_error(event)) is not None:
                raise GenerationError(openai_error(500, said.encode(), dict)["message"])
            yield event

    async def converted(events: AsyncIterator[Any]) -> AsyncIterator[str]:
        async for event in convert(raised(events)):
            yield event.replace('"type":"internal_error"', '"type":"api_error"') if _is_error(event) else event

    handler.message_stream_converter = converted


def _is_error(event: str) -> bool:
    return event.startswith("event: error\n")
