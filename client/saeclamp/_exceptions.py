"""
Everything the client raises on its own account.

SaeclampError
├── InvalidArgumentError            a wrong argument, found before anything is sent; a ValueError too
│   └── ArgumentTypeError           one of another kind than is wanted; a TypeError too
├── MissingPackageError             what was asked for needs a package that is not installed; an ImportError too
├── APIConnectionError              no answer: refused, reset, cut off in the middle of a body
│   ├── APIConnectionLostError      cut off in the middle of a body: the server had begun to answer
│   └── APITimeoutError             no answer in time
├── APIStatusError                  an answer that is not 2xx
│   ├── BadRequestError             400
│   ├── AuthenticationError         401
│   ├── PermissionDeniedError       403
│   ├── NotFoundError               404
│   ├── UnprocessableEntityError    422
│   ├── RateLimitError              429
│   └── InternalServerError         5xx
├── APIResponseValidationError      a 2xx answer that is not what the API promises
├── StreamError                     a stream that reports an error, or stops before its end
└── NotSteeredError                 an answer to a steered request that does not say it was steered
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx

MAX_QUOTED = 300
"""Characters of an unrecognised error body that go into a message."""


class SaeclampError(Exception):
    """Any error of this package."""


class InvalidArgumentError(SaeclampError, ValueError):
    """An argument is wrong, as the server would say of the same request; nothing was sent."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, param)
        self.message = message
        self.param = param
        """JSON path of the field, such as `steering.interventions[0].feature`; None where it is no field."""

    def __str__(self) -> str:
        return self.message


class ArgumentTypeError(InvalidArgumentError, TypeError):
    """An argument is of another kind than is wanted; the message says what to write."""


class MissingPackageError(SaeclampError, ImportError):
    """A package is not installed that what was asked for needs."""


class APIConnectionError(SaeclampError):
    """The server could not be reached, or the connection broke."""


class APIConnectionLostError(APIConnectionError):
    """The connection broke while the server was answering. What was asked for may have been done all the same."""


class APITimeoutError(APIConnectionError):
    """The server did not answer in time. A generation may have been computed all the same."""


class APIStatusError(SaeclampError):
    """The server answered with a status that is not 2xx."""

    def __init__(
        self,
        status_code: int,
        code: str | int | None,
        param: str | None,
        type: str | None,
        request_id: str | None,
        message: str,
        body: Any,
    ) -> None:
        # All arguments go up, so that the exception survives pickling.
        super().__init__(status_code, code, param, type, request_id, message, body)
        self.status_code = status_code
        self.code = code
        self.param = param
        """JSON path of the field that was refused, such as `steering.interventions[0].feature`."""
        self.type = type
        self.request_id = request_id
        self.message = message
        self.body = body
        """The decoded JSON, or the text where it was not JSON."""

    def __str__(self) -> str:
        return _sentence(f"HTTP {self.status_code}: {self.message}", self.param, self.request_id)


class BadRequestError(APIStatusError):
    """400: the request is wrong; `param` says where."""


class AuthenticationError(APIStatusError):
    """401: the API key is missing or wrong."""


class PermissionDeniedError(APIStatusError):
    """403: the API key does not allow this."""


class NotFoundError(APIStatusError):
    """404: no such model, feature or path."""


class UnprocessableEntityError(APIStatusError):
    """422: well-formed and still refused."""


class RateLimitError(APIStatusError):
    """429: too many requests, also after the retries."""


class InternalServerError(APIStatusError):
    """5xx: the server failed, also after the retries."""


class APIResponseValidationError(SaeclampError):
    """The server answered 2xx with something else than the API's JSON."""

    def __init__(self, message: str, request_id: str | None = None) -> None:
        super().__init__(message, request_id)
        self.message = message
        self.request_id = request_id

    def __str__(self) -> str:
        return _sentence(self.message, None, self.request_id)


class StreamError(SaeclampError):
    """The server reported an error in the middle of a stream, or the stream stopped before `[DONE]`."""

    def __init__(
        self,
        message: str,
        code: str | int | None = None,
        param: str | None = None,
        type: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message, code, param, type, request_id)
        self.message = message
        self.code = code
        self.param = param
        self.type = type
        self.request_id = request_id

    def __str__(self) -> str:
        return _sentence(self.message, self.param, self.request_id)


class NotSteeredError(SaeclampError):
    """Steering was asked for and the answer carries no receipt that says it was applied."""

    def __init__(self, message: str, request_id: str | None = None) -> None:
        super().__init__(message, request_id)
        self.message = message
        self.request_id = request_id

    def __str__(self) -> str:
        return _sentence(self.message, None, self.request_id)


_BY_STATUS: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    422: UnprocessableEntityError,
    429: RateLimitError,
}


def connection_error(exc: httpx.RequestError) -> APIConnectionError:
    """Translate a failure of the transport before an answer has begun."""
    kind = APITimeoutError if isinstance(exc, httpx.TimeoutException) else APIConnectionError
    return kind(f"{_asked(exc)}: {_detail(exc)}")


def lost_connection(exc: httpx.RequestError) -> APIConnectionError:
    """Translate a failure of the transport while a body is read: a server is there, or was until then."""
    if isinstance(exc, httpx.TimeoutException):
        return connection_error(exc)
    return APIConnectionLostError(
        f"{_asked(exc)}: the connection was lost while the server was answering ({_detail(exc)})"
    )


def _asked(exc: httpx.RequestError) -> str:
    return f"{exc.request.method} {exc.request.url}"


def _detail(exc: httpx.RequestError) -> str:
    """Describe a failure: many of httpx's have an empty message, so the class is named too."""
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__


def status_error(response: httpx.Response) -> APIStatusError:
    """Build the error for a response whose body has been read, whatever shape the body has."""
    body = _decoded(response)
    fields = envelope(body)
    status = response.status_code
    kind = _kind_of(status)
    message = fields["message"] or response.reason_phrase or "no message"
    request_id = response.headers.get("x-request-id")
    return kind(status, fields["code"], fields["param"], fields["type"], request_id, message, body)


def _kind_of(status: int) -> type[APIStatusError]:
    return _BY_STATUS.get(status, InternalServerError if status >= 500 else APIStatusError)


def event_error(event: Mapping[str, Any], request_id: str | None) -> APIStatusError:
    """Build the error for an event that ends a stream in the place of a result: as if it had been the response."""
    fields = envelope(event)
    status = event.get("status")
    status = status if isinstance(status, int) else 500
    kind = _kind_of(status)
    return kind(status, fields["code"], fields["param"], fields["type"], request_id, fields["message"], event)


def stream_error(body: Any, request_id: str | None) -> StreamError:
    """Build the error for an event of a stream that carries one."""
    fields = envelope(body)
    message = fields["message"] or "the server reported an error without a message"
    return StreamError(message, fields["code"], fields["param"], fields["type"], request_id)


def envelope(body: Any) -> dict[str, Any]:
    """
    Read `message`, `type`, `param` and `code` out of an error body; what is missing is None.

    Knows OpenAI's envelope, `{"error": "text"}`, FastAPI's `{"detail": ...}`, a bare `{"message": ...}`, and text.
    """
    fields: dict[str, Any] = dict.fromkeys(("message", "type", "param", "code"))
    inner = body.get("error") or body if isinstance(body, dict) else body
    if isinstance(inner, dict):
        fields.update({key: inner.get(key) for key in fields})
        if not fields["message"]:
            fields["message"] = _quoted(inner.get("detail") or inner)
    else:
        fields["message"] = _quoted(inner)
    fields["message"] = str(fields["message"])
    return fields


def _quoted(value: Any) -> str:
    """Put a value into one line of bounded length."""
    text = value if isinstance(value, str) else json.dumps(value) if value else ""
    text = " ".join(text.split())
    return text if len(text) <= MAX_QUOTED else text[:MAX_QUOTED] + "..."


def _decoded(response: httpx.Response) -> Any:
    try:
        return json.loads(response.content)
    except ValueError:
        return response.text


def _sentence(message: str, param: str | None, request_id: str | None) -> str:
    where = f" (param {param})" if param else ""
    which = f" (request {request_id})" if request_id else ""
    return f"{message}{where}{which}"
