"""Refusals of our own endpoints: OpenAI's error envelope, with a path to the place."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from saeclamp.types import ErrorBody
from saeclamp.types.refusals import did_you_mean, in_plain_words, json_path, shown
from saeclamp_server.api.disconnect import CLIENT_CLOSED_REQUEST, unless_gone
from saeclamp_server.api.steering_body import parse_body, steering_of
from saeclamp_server.errors import BodyTooLargeError, InvalidRequestError
from saeclamp_server.threads import run_computation

MAX_BODY = 32 << 20
"""Bytes of a body: 512 texts of 64 kB."""
SMALL = 1 << 16
"""Bytes of a body that is still parsed on the event loop."""
MAX_FIELDS = 1000
"""Fields of one object in a body."""


class StrictRequest(Request):
    """A request whose body is bounded, and parsed once, beside the event loop where it is large."""

    @classmethod
    def wrap(cls, request: Request) -> StrictRequest:
        """Take over a request whose body has not been read."""
        return request if isinstance(request, StrictRequest) else cls(request.scope, request.receive)

    async def body(self) -> bytes:
        """Read the body. What is too large is read to its end, or the refusal might not arrive, and not kept."""
        if not hasattr(self, "_body"):  # where starlette keeps it
            body, size = bytearray(), 0
            async for chunk in self.stream():
                size += len(chunk)
                if size <= MAX_BODY:
                    body += chunk
            if size > MAX_BODY:
                raise BodyTooLargeError(f"The body has {size} bytes; at most {MAX_BODY} are taken.", None)
            self._body = bytes(body)
        return self._body

    async def json(self) -> Any:
        """Parse the body. Raises RequestError, and ValueError where it is no JSON."""
        if not hasattr(self, "_json"):
            content = await self.body()
            parse = partial(parse_body, content, MAX_FIELDS)
            self._json = await run_computation(parse) if len(content) > SMALL else parse()
        return self._json


class StrictRoute(APIRoute):
    """
    A route whose body and parameters FastAPI checks, and whose refusals are ours.

    A body's `steering` is checked as that of a completion, with the same messages.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap FastAPI's handler."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                if self.body_field is not None:
                    request = StrictRequest.wrap(request)
                    await _check_steering(request)
                return await handler(request)
            except ClientDisconnect:
                return Response(status_code=CLIENT_CLOSED_REQUEST)
            except RequestValidationError as exc:
                raise _refusal(exc, self) from None

        return handle


class EndingRoute(StrictRoute):
    """A route whose work ends when its client hangs up: one that finds something out, and changes nothing."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap StrictRoute's handler."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            request = StrictRequest.wrap(request)
            try:
                await request.body()  # before anybody listens for what comes after it
            except ClientDisconnect:
                return Response(status_code=CLIENT_CLOSED_REQUEST)
            return await unless_gone(request.receive, handler(request))

        return handle


def strict_router(ends_with_client: bool = False) -> APIRouter:
    """
    Make a router for endpoints of ours; its documentation says how they refuse.

    ends_with_client: whether their work ends when the client hangs up
    """
    said: dict[int | str, str] = {
        400: "Malformed, or it cannot be done",
        404: "There is no such thing",
        429: "Too much at once",
        "4XX": "Refused for another reason",  # which also keeps FastAPI from promising errors of its own form
    }
    responses: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorBody, "description": description} for status, description in said.items()
    }
    return APIRouter(route_class=EndingRoute if ends_with_client else StrictRoute, responses=responses)


async def _check_steering(request: StrictRequest) -> None:
    try:
        body = await request.json()
    except ValueError:
        return  # FastAPI says what is wrong with it
    if isinstance(body, Mapping) and body.get("steering") is not None:
        steering_of({"steering": body["steering"]})


def _refusal(exc: RequestValidationError, route: APIRoute) -> InvalidRequestError:
    errors: Sequence[Any] = exc.errors()
    # a misspelt field is reported before the field that is missing because of it
    error = next((error for error in errors if error["type"] == "extra_forbidden"), errors[0])
    where, *rest = error["loc"]
    if error["type"] == "json_invalid":
        return InvalidRequestError(f"The body is not JSON: {error.get('ctx', {}).get('error', error['msg'])}.", None)
    value = exc.body if where == "body" else {str(part): None for part in rest[:1]}
    path = json_path(tuple(rest), value, "")
    if error["type"] == "extra_forbidden":
        word, known = str(rest[-1]), _known_fields(route, where) if len(rest) == 1 else []
        listed = f" Known: {', '.join(known)}." if known else ""
        return InvalidRequestError(f"{path}: unknown field {shown(word)}.{did_you_mean(word, known)}{listed}", path)
    if not rest:
        asked = "The body must be a JSON object" if error["type"] != "value_error" else in_plain_words(error)
        return InvalidRequestError(f"{asked}.", None)
    return InvalidRequestError(f"{path}: {in_plain_words(error)}.", path)


def _known_fields(route: APIRoute, where: str) -> list[str]:
    fields = [route.body_field] if where == "body" else route.dependant.query_params
    kinds = [field.field_info.annotation for field in fields if field is not None]
    return [name for kind in kinds for name in getattr(kind, "model_fields", {})]
