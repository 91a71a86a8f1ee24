"""Endpoints that would ignore `steering` never see a body that asks for it."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from saeclamp_server.openai_api.guard import SteeringGuard


async def echo(request: Request) -> JSONResponse:
    return JSONResponse({"body": (await request.body()).hex()})


APP = SteeringGuard(Starlette(routes=[Route("/{path:path}", echo, methods=["GET", "POST"])]))


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


@pytest.mark.parametrize("content", [b'{"input":"steering"}', b'{"steering":null}', b"[1]", b"{", b"", b"\xff"])
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
