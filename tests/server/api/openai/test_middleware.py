"""Endpoints that would ignore `steering` never see a body that asks for it."""

from __future__ import annotations

import asyncio
import gzip
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from saeclamp_server.api.openai.middleware import SteeringMiddleware
from saeclamp_server.api.strictness.misplaced_steering import refuse_query
from saeclamp_server.errors import RequestError


async def echo(request: Request) -> JSONResponse:
    return JSONResponse({"body": (await request.body()).hex()})


APP = SteeringMiddleware(Starlette(routes=[Route("/{path:path}", echo, methods=["GET", "POST"])]))


def post(path: str, **arguments: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(APP), base_url="http://test") as client:
            return await client.post(path, **arguments)

    return asyncio.run(send())


@pytest.mark.parametrize(
    "body",
    [
        {"steering": {"interventions": []}},
        {"steering": {}},
        {"steering": "x"},
        {"steerng": 1},
        {"controller": {"a": 1}},
    ],
)
def test_a_body_that_asks_for_steering_is_refused(body: dict[str, Any]) -> None:
    response = post("/tokenize", json={"input": "x", **body})
    assert response.status_code == 400
    assert response.json()["error"]["param"] in body


@pytest.mark.parametrize("content", [b'{"input":"steering"}', b'{"steering":null}', b"[1]", b"{", b""])
def test_any_other_body_arrives_byte_for_byte(content: bytes) -> None:
    response = post("/tokenize", content=content, headers={"Content-Type": "application/json"})
    assert bytes.fromhex(response.json()["body"]) == content


def test_long_bodies_in_many_parts_arrive_whole() -> None:
    parts = [b'{"input":"', *[b"x" * 1000] * 200, b'"}']

    async def stream() -> Any:
        for part in parts:
            yield part

    response = post("/tokenize", content=stream(), headers={"Content-Type": "application/json"})
    assert bytes.fromhex(response.json()["body"]) == b"".join(parts)


def test_the_steered_endpoints_and_other_kinds_of_body_are_left_to_themselves() -> None:
    assert post("/v1/chat/completions", json={"steering": {}}).status_code == 200
    assert post("/v1/audio", files={"steering": b"x"}).status_code == 200


TEXT = '{"input": "x"}'


@pytest.mark.parametrize(
    ("content", "headers", "says"),
    [
        (TEXT.encode("utf-16"), {}, "UTF-16"),
        (TEXT.encode("utf-16-le"), {}, "UTF-16"),
        (TEXT.encode("utf-32-be"), {}, "UTF-16 or UTF-32"),
        (TEXT.encode("utf-8-sig"), {}, "byte order mark"),
        ('{"input": "é"}'.encode("latin-1"), {}, "not UTF-8: its byte 11"),
        (gzip.compress(TEXT.encode(), mtime=0), {"Content-Encoding": "gzip"}, "compressed"),
        (gzip.compress(TEXT.encode(), mtime=0), {}, "compressed"),
        (TEXT.encode(), {"Content-Encoding": "br"}, "compressed"),
    ],
)
@pytest.mark.parametrize("path", ["/tokenize", "/v1/chat/completions", "/v1/messages"])
def test_a_body_that_is_not_plain_utf_8_is_refused_everywhere(
    path: str, content: bytes, headers: dict[str, str], says: str
) -> None:
    response = post(path, content=content, headers={"Content-Type": "application/json", **headers})
    assert response.status_code == 400
    assert says in response.json()["error"]["message"]


def test_an_identity_encoding_is_none() -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "identity"}
    assert post("/tokenize", content=TEXT, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "query",
    [
        *("steering=%7B%7D", "variant=sea", "steer=1", "feature=a/1", "a=1;steering=2", "extra_body=%7B%7D"),
        *("vllm_xargs=x", "extraBody=x", "a/golden-gate=1", "json=%7B%22steering%22%3A1%7D"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
def test_steering_in_the_url_is_refused(path: str, query: str) -> None:
    response = post(f"{path}?{query}", json={})
    assert response.status_code == 400
    assert "at the top level" in response.json()["error"]["message"]


def test_other_queries_pass() -> None:
    assert post("/v1/chat/completions?beta=true&api-version=2026-01-01", json={}).status_code == 200


def test_a_model_in_the_url_is_the_bodys_or_is_refused() -> None:
    for query in ("model=m:sea", "model=", "Model=m:sea", "a=1;model=m:sea", "model=" + "x" * 5000):
        response = post(f"/tokenize?{query}", json={"prompt": "x"})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "model"
        assert len(response.text) < 600


def test_a_query_of_megabytes_is_refused() -> None:
    with pytest.raises(RequestError, match="has 3000000 bytes; at most 65536 are read"):
        refuse_query(b"a1&" * 1_000_000)


@pytest.mark.parametrize(
    "header",
    ["Steering", "X-Steering", "X-Steering-Vector", "X-Saeclamp-Spec", "X-Saeclamp-Variant", "Saeclamp-Steering"],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize", "/v1/steering/compare"])
def test_steering_in_a_header_is_refused(path: str, header: str) -> None:
    response = post(path, json={}, headers={header: "x"})
    assert response.status_code == 400
    assert "steering is asked for in the body" in response.json()["error"]["message"]


def test_other_headers_pass() -> None:
    headers = {"X-Request-Id": "steering", "User-Agent": "saeclamp/0.1", "X-Variant": "b", "X-Stainless-Lang": "python"}
    assert post("/v1/chat/completions", json={}, headers=headers).status_code == 200
