"""Bodies that are too large are refused, however they come, before anything reads them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Message

from saeclamp_server.api.body_limit import MEGABYTE, BodyLimit
from saeclamp_server.api.error_envelope import ErrorEnvelope
from saeclamp_server.cli.args import parse_args
from saeclamp_server.startup.options import ServeOptions

READ: list[int] = []


async def count(request: Request) -> JSONResponse:
    READ.append(len(await request.body()))
    return JSONResponse({"size": READ[-1]})


APP = ErrorEnvelope(BodyLimit(Starlette(routes=[Route("/{path:path}", count, methods=["POST"])]), 1), MEGABYTE)


@pytest.fixture(autouse=True)
def _nothing_is_read() -> None:
    READ.clear()


def post(path: str, content: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(APP), base_url="http://test") as client:
            return await client.post(path, content=content)

    return asyncio.run(send())


async def chunks(size: int) -> AsyncIterator[bytes]:
    for begin in range(0, size, 1000):
        yield b"x" * min(1000, size - begin)


def content_of(kind: str, size: int) -> Any:
    return b"x" * size if kind == "whole" else chunks(size)


@pytest.mark.parametrize("kind", ["whole", "chunked"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/tokenize", "/v1/vectors", "/nowhere"])
def test_a_larger_body_is_a_413_that_says_the_limit_and_is_not_passed_on(path: str, kind: str) -> None:
    response = post(path, content_of(kind, MEGABYTE + 1))
    assert response.status_code == 413
    assert "1048577 bytes" in response.json()["error"]["message"]
    assert "at most 1048576 (--max-body 1)" in response.json()["error"]["message"]
    assert not READ


@pytest.mark.parametrize("kind", ["whole", "chunked"])
def test_a_body_as_large_as_the_limit_arrives_whole(kind: str) -> None:
    assert post("/v1/chat/completions", content_of(kind, MEGABYTE)).json() == {"size": MEGABYTE}


@pytest.mark.parametrize("path", ["/v1/features/contrast", "/v1/variants/import", "/v1/vectors/derive"])
def test_endpoints_of_ours_bound_their_bodies_themselves(path: str) -> None:
    assert post(path, content_of("whole", 2 * MEGABYTE)).json() == {"size": 2 * MEGABYTE}


def call(headers: list[tuple[bytes, bytes]], parts: list[Message]) -> list[Message]:
    """Ask as a server does, which tells what the client has sent."""
    sent: list[Message] = []
    waiting = iter(parts)

    async def receive() -> Message:
        return next(waiting)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/tokenize", "query_string": b"", "headers": headers}
    asyncio.run(APP(scope, receive, send))
    return sent


def test_a_length_does_not_count_where_the_body_comes_in_chunks() -> None:
    headers = [(b"content-length", b"5"), (b"transfer-encoding", b"chunked")]
    part = {"type": "http.request", "body": b"x" * MEGABYTE, "more_body": True}
    sent = call(headers, [part, {"type": "http.request", "body": b"x", "more_body": False}])
    assert sent[0]["status"] == 413


def test_a_client_that_waits_for_leave_to_send_too_much_does_not_get_it() -> None:
    sent = call([(b"content-length", b"9000000"), (b"expect", b"100-continue")], [])
    assert sent[0]["status"] == 413


def test_a_client_that_leaves_in_the_middle_is_not_answered() -> None:
    part = {"type": "http.request", "body": b"x" * 10, "more_body": True}
    assert not call([(b"transfer-encoding", b"chunked")], [part, {"type": "http.disconnect"}])
    assert not READ


def test_the_limit_is_an_option() -> None:
    def limit(*flags: str) -> int:
        options = parse_args(["serve", "m", "--sae", "x", *flags])
        assert isinstance(options, ServeOptions)
        return options.max_body

    assert (limit(), limit("--max-body", "64")) == (16, 64)
    for wrong in ("0", "-1", "1.5", "1e3", "100000", "x"):
        with pytest.raises(SystemExit):
            limit("--max-body", wrong)
