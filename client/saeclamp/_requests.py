"""From the caller's arguments to bytes, and from bytes to typed answers. Pure: no sockets, no clocks."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeAlias

import httpx
from pydantic import BaseModel, ValidationError

from saeclamp._exceptions import (
    APIResponseValidationError,
    ArgumentTypeError,
    InvalidArgumentError,
    NotSteeredError,
    SaeclampError,
)
from saeclamp._responses import AnswerT, ChunkT, ModelList, ResponseT
from saeclamp._version import __version__
from saeclamp.types import Operation, Receipt, Steering, as_steering, looks_like_steering
from saeclamp.types.refusals import shown

SteeringLike: TypeAlias = Steering | dict[str, Any] | Operation | Sequence[Operation]
"""Steering as `steering=` accepts it: the object, its JSON, one intervention, or several."""

API_KEY_VARIABLE = "SAECLAMP_API_KEY"
"""The one variable that the client and the command line read a server's key from."""

SESSION_HEADER = "x-session-id"
"""
Header by which routers send a conversation to one replica, whose caches know it. Ray Serve, vLLM's router and others look at
it; nothing is wrong where none does.
"""
SESSION_LENGTH = 16

MAX_PORT = 2**16 - 1
SUCH_AS = "http://127.0.0.1:8000, 127.0.0.1:8000 or 8000"
_PORT = re.compile(r":?[0-9]{1,5}")
_BEHIND_ROOT = re.compile(r"/*(?:/v1(?:/chat/completions|/completions|/models)?)?/*$")


@dataclass(frozen=True)
class GenerationRequest(Generic[ResponseT, ChunkT]):
    """One request for text, checked and ready to send but for the model's name where the caller gave none."""

    path: str
    response_type: type[ResponseT]
    """Type of the answer: one whose receipt is required, where one is expected."""
    chunk_type: type[ChunkT]
    body: dict[str, Any]
    headers: dict[str, str]
    timeout: float | httpx.Timeout | None
    """Seconds, or None for the client's."""
    expects_receipt: bool

    @property
    def model(self) -> str | None:
        """The model to ask; None for the server's base model."""
        model: str | None = self.body["model"]
        return model

    @property
    def stream(self) -> bool:
        """True if the answer comes in chunks."""
        return bool(self.body["stream"])

    def with_model(self, model: str) -> GenerationRequest[ResponseT, ChunkT]:
        """Return the same request to the model of that name."""
        return replace(self, body={**self.body, "model": model})


def build_generation(
    path: str,
    response_types: tuple[type[ResponseT], type[ResponseT]],
    chunk_type: type[ChunkT],
    params: dict[str, Any],
    steering: SteeringLike | None,
) -> GenerationRequest[ResponseT, ChunkT]:
    """
    Check a request's arguments and lay them out for the wire.

    response_types: of an answer without, and with, a receipt that was asked for
    params: the request's fields, with openai-python's `extra_body`, `extra_headers` and `timeout` among them
    raises: `InvalidArgumentError` for steering that is wrong, given twice or misspelt
    """
    params = dict(params)
    extra_body = dict(params.pop("extra_body", None) or {})
    headers = dict(params.pop("extra_headers", None) or {})
    timeout = params.pop("timeout", None)
    checked = _the_steering(steering, extra_body)
    body = params | extra_body
    _refuse_misspelt_steering(body)  # before `steering` itself is put in, which looks like one too
    if checked is not None:
        body["steering"] = checked.to_json()
    if not any(name.lower() == SESSION_HEADER for name in headers):
        headers[SESSION_HEADER] = _session_id(body)
    expects_receipt = checked is not None and checked.receipt != "none"
    return GenerationRequest(path, response_types[expects_receipt], chunk_type, body, headers, timeout, expects_receipt)


def _session_id(body: Mapping[str, Any]) -> str:
    """
    Name a conversation under one steering: by what its later requests have in common with its first one.

    Raises InvalidArgumentError for what is no JSON, as sending it would.
    """
    messages, prompt = body.get("messages"), body.get("prompt")
    first = (
        next((one for one in messages if isinstance(one, Mapping) and one.get("role") == "user"), None)
        if isinstance(messages, Sequence)
        else prompt
    )
    said = encode({"model": body.get("model"), "steering": body.get("steering"), "first": first})
    return hashlib.sha256(said).hexdigest()[:SESSION_LENGTH]


def _the_steering(steering: SteeringLike | None, extra_body: dict[str, Any]) -> Steering | None:
    """Take the steering from its argument, or from the `extra_body` that works with openai-python."""
    in_extra_body = extra_body.pop("steering", None)
    if steering is not None and in_extra_body is not None:
        raise ArgumentTypeError("Steering is given twice: as 'steering' and as 'extra_body.steering'.", "steering")
    steering = in_extra_body if steering is None else steering
    if steering is None:
        return None
    return as_steering(steering)


def _refuse_misspelt_steering(body: Mapping[str, Any]) -> None:
    """Refuse a misspelt `steering`: servers of this API ignore what they do not know, and would answer unsteered."""
    wrong = next((key for key in body if looks_like_steering(key)), None)
    if wrong is not None:
        raise ArgumentTypeError(f"Unknown field {wrong!r}. Did you mean 'steering'?", wrong)


def encode(body: Mapping[str, Any]) -> bytes:
    """Write JSON. A message of an earlier answer may stand in it as it is. Refuses NaN, infinity and what is no JSON."""
    try:
        return json.dumps(body, allow_nan=False, separators=(",", ":"), default=_plain).encode()
    except InvalidArgumentError:
        raise
    except ValueError as exc:  # NaN, infinity, half of a surrogate pair, or an object within itself
        raise InvalidArgumentError(f"The request cannot be written as JSON: {exc}.") from exc


def _plain(value: object) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_none=True)
    raise ArgumentTypeError(f"The request cannot be written as JSON: it has a {type(value).__name__}.")


def parse_json(data: bytes | str, request_id: str | None) -> Any:
    """Decode what the server says is JSON. Raises `APIResponseValidationError`."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise APIResponseValidationError(f"The server's answer is not JSON: {data[:100]!r}", request_id) from exc


def parse_answer(answer_type: type[AnswerT], body: Any, request_id: str | None) -> AnswerT:
    """Type a decoded answer. Raises `APIResponseValidationError`."""
    try:
        answer = answer_type.model_validate(body)
    except ValidationError as exc:
        message = f"The server's answer is not a {answer_type.__name__}: {exc}"
        raise APIResponseValidationError(message, request_id) from exc
    answer._request_id = request_id
    return answer


def parse_response(answer_type: type[AnswerT], response: httpx.Response) -> AnswerT:
    """Type a response whose body has been read."""
    request_id = response.headers.get("x-request-id")
    return parse_answer(answer_type, parse_json(response.content, request_id), request_id)


def parse_generation(call: GenerationRequest[ResponseT, ChunkT], response: httpx.Response) -> ResponseT:
    """Type the answer to a request for text, and refuse it if it should have been steered and does not say so."""
    request_id = response.headers.get("x-request-id")
    body = parse_json(response.content, request_id)
    # before it is typed, because a missing receipt is no malformed answer
    if call.expects_receipt and isinstance(body, dict) and body.get("steering") is None:
        check_receipt(None, True, request_id)
    answer = parse_answer(call.response_type, body, request_id)
    check_receipt(answer.steering, call.expects_receipt, request_id)
    return answer


def check_receipt(receipt: Receipt | None, expected: bool, request_id: str | None) -> None:
    """Raise `NotSteeredError` for an answer that should have been steered and does not say that it was."""
    if not expected or (receipt is not None and receipt.applied):
        return
    found = "carries no receipt" if receipt is None else "carries a receipt with applied=false"
    message = f"Steering was asked for, and the answer {found}. Is this a saeclamp server?"
    raise NotSteeredError(message, request_id)


def receipt_of(answer: object) -> Receipt:
    """
    Read the receipt of an answer that another client has brought: an object of openai-python, or JSON.

    Raises `NotSteeredError` where there is none that says that steering was applied.
    """
    found = answer.get("steering") if isinstance(answer, Mapping) else getattr(answer, "steering", None)
    if found is None:
        raise NotSteeredError("This answer carries no receipt: it was not steered, or its request asked for none.")
    receipt = parse_answer(Receipt, found, None)
    check_receipt(receipt, True, None)
    return receipt


def base_model(models: ModelList) -> str:
    """Return the first model that is not a variant of another. Raises `SaeclampError` where there is none."""
    for model in models.data:
        if model.parent is None:
            return model.id
    raise SaeclampError(f"The server lists no base model. Listed: {', '.join(models.ids) or 'none'}.")


def server_root(base_url: str) -> str:
    """
    Find the server that a base URL means, without the `/v1` that OpenAI's clients want, or what was pasted behind it.

    A bare port means this machine, and `host:port` needs no scheme. Raises `InvalidArgumentError` for what could mean
    anything: a request to it would end in another program's 404.
    """
    url = base_url.strip()
    if _PORT.fullmatch(url):
        url = f"127.0.0.1:{url.removeprefix(':')}"
    if "://" not in url and not url.startswith(("http:", "https:")):
        url = f"http://{url}"
    try:
        parsed = httpx.URL(url)
        parsed.host.encode("idna")  # as the socket will: it refuses labels that are too long, which httpx takes
        port = 80 if parsed.port is None else parsed.port
        is_address = parsed.scheme in ("http", "https") and parsed.host and 0 < port <= MAX_PORT
        why = "" if is_address and not parsed.query and not parsed.fragment else "."
    except (httpx.InvalidURL, UnicodeError) as exc:
        why = f": {exc}."
    if why:
        raise InvalidArgumentError(f"{shown(base_url)} is no address such as {SUCH_AS}{why}", "base_url")
    return _BEHIND_ROOT.sub("", url)


def default_headers(api_key: str | None, extra: Mapping[str, str] | None) -> httpx.Headers:
    """Headers of every request. The key falls back to the environment; an empty one sends none."""
    # stripped, because keys out of files end in a line break, which no header may hold
    key = (os.environ.get(API_KEY_VARIABLE, "") if api_key is None else api_key).strip()
    headers = httpx.Headers({"user-agent": f"saeclamp-python/{__version__}", "accept": "application/json"})
    if key:
        headers["authorization"] = f"Bearer {key}"
    headers.update(extra)
    return headers
