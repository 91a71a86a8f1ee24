"""Whoever answers with an error, its form is that which the path's clients read."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from saeclamp_server.api.error_envelope import ErrorEnvelope
from saeclamp_server.api.error_fields import field_named
from saeclamp_server.errors import BusyError, InvalidSteeringError

VLLM = {"error": {"message": "top_k must be 0 (parameter=top_k, value=-5)", "type": "BadRequestError", "code": 400}}
ANSWERS: dict[str, tuple[int, Any]] = {
    "vllm": (400, VLLM | {"param": None}),
    "auth": (401, {"error": "Unauthorized"}),
    "forbidden": (403, {"detail": "no"}),
    "missing": (
        404,
        {"error": {"message": "The model `x` does not exist.", "type": "NotFoundError", "param": "model"}},
    ),
    "large": (413, {"detail": "too long"}),
    "busy": (429, BusyError(1, 2).body()),
    "ours": (400, InvalidSteeringError("No.", "steering").body()),
    "broken": (500, {"error": {"message": "", "type": "InternalServerError", "code": 500}}),
}


def build() -> ErrorEnvelope:
    app = FastAPI()

    @app.api_route("/{path:path}", methods=["GET", "POST"])
    async def answer(path: str, request: Request) -> Response:
        kind = path.rsplit("/", 1)[-1]
        await request.body()
        if kind == "ok":
            return JSONResponse({"error": "kept", "id": request.headers["x-request-id"]})
        if kind == "text":
            return PlainTextResponse("Internal Server Error", 500)
        if kind == "empty":
            return Response(status_code=503)
        if kind in ("completions", "events"):
            return StreamingResponse(iter(['data: {"id": 1}\n\n', STREAM_ERROR]), media_type="text/event-stream")
        status, body = ANSWERS[kind]
        return JSONResponse(body, status, {"x-request-id": "r-1", "retry-after": "1"})

    return ErrorEnvelope(app, 1000)


STREAM_ERROR = 'data: {"error": {"message": "gone", "type": "InternalServerError", "param": null, "code": 500}}\n\n'


def ask(path: str, method: str = "GET", **request: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(build()), base_url="http://test") as http:
            return await http.request(method, path, **request)

    return asyncio.run(send())


@pytest.mark.parametrize(
    ("kind", "status", "type_", "code", "anthropic"),
    [
        ("vllm", 400, "invalid_request_error", "invalid_request", "invalid_request_error"),
        ("auth", 401, "invalid_request_error", "invalid_api_key", "authentication_error"),
        ("forbidden", 403, "invalid_request_error", "invalid_request", "permission_error"),
        ("missing", 404, "invalid_request_error", "model_not_found", "not_found_error"),
        ("large", 413, "invalid_request_error", "request_too_large", "request_too_large"),
        ("busy", 429, "rate_limit_error", "steering_busy", "rate_limit_error"),
        ("ours", 400, "invalid_request_error", "invalid_steering", "invalid_request_error"),
        ("broken", 500, "server_error", "internal_error", "api_error"),
        ("text", 500, "server_error", "internal_error", "api_error"),
    ],
)
def test_every_error_has_openais_form_and_on_messages_anthropics(
    kind: str, status: int, type_: str, code: str, anthropic: str
) -> None:
    response = ask(f"/v1/chat/{kind}")
    assert response.status_code == status
    assert response.json().keys() == {"error"}
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == (type_, code)
    assert error["message"]
    other = ask(f"/v1/messages/{kind}").json()
    assert (other["type"], other["error"]["type"]) == ("error", anthropic)
    assert other["error"]["message"] == error["message"]


def test_headers_stay_and_the_request_is_named() -> None:
    response = ask("/v1/messages/busy")
    assert response.headers["retry-after"] == "1"
    assert response.json()["request_id"] == "r-1"
    assert int(response.headers["content-length"]) == len(response.content)


def test_what_vllm_adds_to_its_messages_is_left_out() -> None:
    assert ask("/v1/chat/vllm").json()["error"]["message"] == "top_k must be 0"


def test_a_success_and_a_status_alone_pass_as_they_are() -> None:
    assert ask("/v1/messages/ok", headers={"x-request-id": "mine"}).json() == {"error": "kept", "id": "mine"}
    assert len(ask("/v1/messages/ok").json()["id"]) == 32
    assert (ask("/health/empty").status_code, ask("/health/empty").content) == (503, b"")


def test_an_error_within_a_stream_of_openais_is_written_as_openais() -> None:
    said = '{"error": {"message": "gone", "type": "server_error", "param": null, "code": "internal_error"}}'
    assert ask("/v1/chat/completions").text == f'data: {{"id": 1}}\n\ndata: {said}\n\n'
    assert ask("/v1/other/events").text.endswith(STREAM_ERROR)


def test_the_field_is_found_in_the_requests_own_words() -> None:
    body = {"model": "m", "messages": [], "top_k": -5}
    assert ask("/v1/chat/vllm", "POST", json=body).json()["error"]["param"] == "top_k"


@pytest.mark.parametrize(
    ("message", "param", "fields", "expected"),
    [
        ("too many", "logprobs", ["logprobs", "top_logprobs"], "top_logprobs"),
        ("too many", "logprobs", ["logprobs"], "logprobs"),
        ("no such type", "structured_outputs", ["response_format"], "response_format"),
        ("out of vocabulary", "body.prompt", ["prompt"], "prompt"),
        ("n must be at least 1, got 0.", None, ["model", "n"], "n"),
        ("min_tokens must be at most max_tokens", None, ["max_tokens", "min_tokens"], "min_tokens"),
        ("The decoder prompt cannot be empty", None, ["model", "input"], "input"),
        ("'int' object is not iterable", None, ["messages"], "messages"),
        ("This model's maximum length of the input", None, ["model", "text"], None),
        ("This model's maximum context length is 2048 tokens", None, ["model", "messages"], "messages"),
        ("too long", "input_tokens", ["model", "prompt"], "prompt"),
        ("Unknown parameter 'text'", None, ["model", "text"], "text"),
        ("something else", None, ["model", "messages"], None),
    ],
)
def test_the_field_that_an_error_is_about(message: str, param: Any, fields: list[str], expected: str | None) -> None:
    assert field_named(message, param, dict.fromkeys(fields)) == expected
