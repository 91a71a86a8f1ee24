"""
The client of a language model behind an OpenAI-compatible endpoint, which asks until the answer has the wanted form.

    LabelError
    ├── EndpointError   no request will be answered: stop
    └── NoAnswerError   this request was not answered, after all tries
"""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, TypeVar

import httpx

from saeclamp_saes.errors import LabelError
from saeclamp_saes.io.sanitize import one_line
from saeclamp_saes.labelling.explain.prompts import AGAIN

T = TypeVar("T")
HOPELESS = {401: "the key is wrong or missing", 403: "it does not allow that", 404: "there is no such model or address"}
PASSING = {408, 409, 425, 429, 500, 502, 503, 504, 529}
"""Statuses after which the same request may succeed."""
LONGEST_WAIT = 600.0
"""Longest pause in seconds. An endpoint that asks for a longer one is not waited for."""
LONGEST_BACKOFF = 60.0
LAST_PORT = 65535
LONGEST_BODY = 4 << 20
"""Bytes of a response, at most; an answer has some thousands."""
LONGEST_ANSWER = 100_000
"""Characters of an answer. Of a longer one the end is read: models think aloud before they answer."""
ASKED_TIMES = 3
"""Times that a question is put, until an answer has the wanted form."""


class EndpointError(LabelError):
    """The endpoint will answer no request with these settings."""


class NoAnswerError(LabelError):
    """A request was not answered, or not as it was asked to be."""


@dataclass(frozen=True)
class ExplainEndpoint:
    """The endpoint of a model, and the settings of its requests."""

    base_url: str
    """URL as for OpenAI's clients: `/chat/completions` is appended."""
    model: str
    api_key: str | None = field(default=None, repr=False)
    timeout: float = 120.0
    """Seconds for a whole answer."""
    retries: int = 6
    """Retries after failures that may pass."""
    first_wait: float = 1.0
    """Seconds before the first retry, where the endpoint names none; doubled each time."""
    structured: bool = False
    """True if it can force an answer into a JSON schema."""
    body: Mapping[str, Any] = field(default_factory=dict)
    """Fields of every request besides its messages; null removes a default."""


@dataclass
class TokenUsage:
    """Tokens that were paid for, as the endpoint counts them."""

    requests: int = 0
    """Requests that were answered."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0
    """Answers that gave no numbers of tokens."""

    def add(self, usage: object) -> None:
        """Add the `usage` of an answer."""
        self.requests += 1
        said = usage if isinstance(usage, dict) else {}
        prompt, completion = said.get("prompt_tokens"), said.get("completion_tokens")
        if isinstance(prompt, int) and isinstance(completion, int):
            self.prompt_tokens += prompt
            self.completion_tokens += completion
        else:
            self.uncounted += 1


class _Response(NamedTuple):
    """A response, read to its end."""

    status: int
    headers: httpx.Headers
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")


class _Passing(Exception):
    """A failure that may pass, with the seconds to wait if the endpoint names them."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class ExplainClient:
    """A client of one endpoint, which counts the tokens it uses."""

    def __init__(self, endpoint: ExplainEndpoint, http: httpx.AsyncClient) -> None:
        """Raise EndpointError where the endpoint's URL is none."""
        self._endpoint, self._http = endpoint, http
        self._url = _checked(f"{endpoint.base_url.rstrip('/')}/chat/completions")
        self.usage = TokenUsage()

    async def ask(self, system: str, user: str, schema: Mapping[str, Any], parse: Callable[[str], T | None]) -> T:
        """
        Ask until the answer can be parsed.

        schema: JSON schema of the answer
        parse:  maps an answer to its content, or to None where it has not the wanted form
        Raises EndpointError or NoAnswerError.
        """
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        answer = ""
        for _ in range(ASKED_TIMES):
            answer = await self._answer(messages, schema)
            if (found := parse(answer)) is not None:
                return found
            messages = [*messages[:2], {"role": "assistant", "content": answer}, {"role": "user", "content": AGAIN}]
        raise NoAnswerError(f"the model does not answer as asked, but with {one_line(answer)[:80]!r}")

    async def _answer(self, messages: list[dict[str, str]], schema: Mapping[str, Any]) -> str:
        body = {"model": self._endpoint.model, "messages": messages, **self._endpoint.body}
        if self._endpoint.structured:
            form = {"name": "answer", "strict": True, "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        try:
            data = json.dumps({name: value for name, value in body.items() if value is not None}, allow_nan=False)
        except ValueError as exc:
            raise EndpointError(f"The body of a request cannot be sent as JSON: {exc}.") from None
        retry = 0
        while True:
            try:
                return self._content(await self._post(data.encode()))
            except _Passing as exc:
                wait = exc.wait if exc.wait is not None else self._backoff(retry)
                if retry == self._endpoint.retries or wait > LONGEST_WAIT:
                    raise NoAnswerError(f"{self._url}: {exc}") from None
            await asyncio.sleep(wait)
            retry += 1

    def _backoff(self, retry: int) -> float:
        # spread out, so that requests that failed together do not come back together
        return float(min(self._endpoint.first_wait * 2**retry, LONGEST_BACKOFF) * random.uniform(0.5, 1.0))

    async def _post(self, data: bytes) -> _Response:
        """Send a request, and return the answer of status 200."""
        headers = {"Content-Type": "application/json"}
        if key := self._endpoint.api_key:
            headers["Authorization"] = f"Bearer {key}"
        try:
            async with (
                asyncio.timeout(self._endpoint.timeout),
                self._http.stream("POST", self._url, content=data, headers=headers) as streamed,
            ):
                response = _Response(streamed.status_code, streamed.headers, await self._read(streamed))
        except TimeoutError:
            raise _Passing(f"no answer within {self._endpoint.timeout:g} seconds") from None
        except httpx.UnsupportedProtocol as exc:
            raise EndpointError(f"{self._url} is no address: {exc}.") from None
        except httpx.HTTPError as exc:
            # an endpoint that has never answered is no endpoint; one that has may be starting again
            if isinstance(exc, httpx.ConnectError) and not self.usage.requests:
                raise EndpointError(f"{self._url} cannot be reached: {exc}.") from None
            raise _Passing(one_line(str(exc)) or type(exc).__name__) from None
        if response.status in HOPELESS:
            raise EndpointError(f"{self._url} refuses, {HOPELESS[response.status]}: {_reason(response)}")
        if response.status in PASSING:
            raise _Passing(_reason(response), _retry_after(response))
        if response.status != 200:
            raise NoAnswerError(f"{self._url}: {_reason(response)}")
        return response

    async def _read(self, response: httpx.Response) -> bytes:
        body = bytearray()
        async for part in response.aiter_bytes():
            body += part
            if len(body) > LONGEST_BODY:
                raise NoAnswerError(f"{self._url}: it sends more than {LONGEST_BODY >> 20} MiB")
        return bytes(body)

    def _content(self, response: _Response) -> str:
        try:
            value = json.loads(response.body)
            content = value["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise _Passing(f"what it sends is no chat completion: {one_line(response.text)[:80]!r}") from None
        self.usage.add(value.get("usage"))
        # a refusal, or an answer that ended while it was thought about
        return content[-LONGEST_ANSWER:] if isinstance(content, str) else ""


def _checked(url: str) -> str:
    try:
        port = httpx.URL(url).port or 0
    except httpx.InvalidURL as exc:
        raise EndpointError(f"{url} is no address: {exc}.") from None
    if port > LAST_PORT:  # which httpx finds out only where it connects, and says in other words each time
        raise EndpointError(f"{url} is no address: ports end at {LAST_PORT}.")
    return url


def _reason(response: _Response) -> str:
    try:
        text = json.loads(response.body)["error"]["message"]
    except (ValueError, LookupError, TypeError, RecursionError):
        text = response.text
    return f"status {response.status}, {one_line(str(text))[:200]!r}"


def _retry_after(response: _Response) -> float | None:
    """Return the seconds of a Retry-After header, which may hold a date instead; None where there is neither."""
    value = response.headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return None if math.isnan(seconds) else max(0.0, seconds)
