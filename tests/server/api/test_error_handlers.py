"""A body that breaks vLLM's own checks is its sender's fault; what breaks later is ours, and neither ends the connection."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

from saeclamp_server.api import error_handlers


def build() -> FastAPI:
    app = FastAPI()

    @app.post("/chat")
    async def chat(request: ChatCompletionRequest) -> None:
        raise KeyError("ours")

    for kind in error_handlers.BROKEN:
        app.add_exception_handler(kind, error_handlers.broken)
    app.add_exception_handler(RequestValidationError, error_handlers.invalid)
    return app


def ask(body: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(build()), base_url="http://test") as http:
            return await http.post("/chat", json=body)

    return asyncio.run(send())


CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"structured_outputs": 5}, "structured_outputs"),
        ({"structured_outputs": ["a"]}, "structured_outputs"),
        ({"structured_outputs": "a"}, "structured_outputs"),
        ({"temperature": "warm"}, "temperature"),
        ({"messages": [{"role": "user", "content": "x"}], "stop": [1]}, "stop[0]"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ],
)
def test_what_breaks_a_check_of_the_body_is_a_400_that_names_the_field(body: Any, param: str) -> None:
    response = ask(CHAT | body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert response.json()["error"]["message"].startswith(f"{param}: ")


def test_what_breaks_later_is_a_500() -> None:
    response = ask(CHAT)
    assert (response.status_code, response.json()["error"]["type"]) == (500, "server_error")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"temperature": "warm"}, "not 'warm'."),
        ({"max_tokens": 1.5}, "not 1.5."),
        ({"model": "x" * 10**5, "temperature": "x" * 10**5}, "xx'...."),
    ],
)
def test_a_wrong_value_is_repeated_up_to_a_length(body: Any, says: str) -> None:
    message = ask(CHAT | body).json()["error"]["message"]
    assert message.endswith(says)
    assert len(message) < 500
