"""Failures, as the caller sees them."""

from __future__ import annotations

import json
import pickle
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from tests.support.scripted_server import ScriptedServer, chat_chunk, hang_up, reply, sse, stall, stream

import saeclamp
from saeclamp import (
    APIConnectionError,
    APIConnectionLostError,
    APIStatusError,
    APITimeoutError,
    BadRequestError,
    Clamp,
    Client,
    InternalServerError,
)

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
def client(server: ScriptedServer) -> Iterator[Client]:
    """A client that does not retry."""
    with Client(server.url, max_retries=0) as client:
        yield client


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (302, saeclamp.APIStatusError),
        (400, saeclamp.BadRequestError),
        (401, saeclamp.AuthenticationError),
        (403, saeclamp.PermissionDeniedError),
        (404, saeclamp.NotFoundError),
        (409, saeclamp.APIStatusError),
        (422, saeclamp.UnprocessableEntityError),
        (429, saeclamp.RateLimitError),
        (500, saeclamp.InternalServerError),
        (501, saeclamp.InternalServerError),
        (503, saeclamp.InternalServerError),
    ],
)
def test_each_status_has_its_error(
    server: ScriptedServer, client: Client, status: int, error: type[APIStatusError]
) -> None:
    server.will(reply({"error": {"message": "no"}}, status=status))
    with pytest.raises(APIStatusError) as caught:
        client.models.list()
    assert type(caught.value) is error
    assert caught.value.status_code == status


def test_the_envelope_is_read_into_the_error(server: ScriptedServer, client: Client) -> None:
    error = {
        "message": "No SAE named 'x' is loaded.",
        "type": "invalid_request_error",
        "param": "steering.interventions[0].feature",
        "code": "sae_not_found",
    }
    server.will(reply({"error": error}, status=400, headers={"x-request-id": "r9"}))
    with pytest.raises(BadRequestError) as caught:
        client.chat.completions.create(model="m", messages=HI)
    raised = caught.value
    assert raised.message == "No SAE named 'x' is loaded."
    assert raised.type == "invalid_request_error"
    assert raised.param == "steering.interventions[0].feature"
    assert raised.code == "sae_not_found"
    assert raised.request_id == "r9"
    assert raised.body == {"error": error}
    assert str(raised) == (
        "HTTP 400: No SAE named 'x' is loaded. (param steering.interventions[0].feature) (request r9)"
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param(b'{"error": "Unauthorized"}', "Unauthorized", id="error-is-a-string"),
        pytest.param(b'{"detail": "Not Found"}', "Not Found", id="detail"),
        pytest.param(
            b'{"detail": [{"loc": ["body"], "msg": "bad"}]}', '[{"loc": ["body"], "msg": "bad"}]', id="detail-is-a-list"
        ),
        pytest.param(b'{"object": "error", "message": "old", "code": 400}', "old", id="bare-message"),
        pytest.param(b'{"error": {}}', '{"error": {}}', id="empty-envelope"),
        pytest.param(b'{"error": {"message": ""}}', '{"message": ""}', id="empty-message"),
        pytest.param(b"<html>\n  Bad  gateway\n</html>", "<html> Bad gateway </html>", id="html"),
        pytest.param(b"x" * 1000, "x" * 300 + "...", id="long-text"),
        pytest.param(b"", "Bad Request", id="nothing"),
        pytest.param(b"null", "Bad Request", id="null"),
        pytest.param(b"[]", "Bad Request", id="empty-list"),
        pytest.param(b"\xff\xfe", "\ufffd\ufffd", id="not-text"),
    ],
)
def test_any_body_gives_a_message(server: ScriptedServer, client: Client, body: bytes, message: str) -> None:
    server.will(reply(body, status=400))
    with pytest.raises(BadRequestError) as caught:
        client.models.list()
    assert caught.value.message == message


def test_a_numeric_code_is_kept(server: ScriptedServer, client: Client) -> None:
    server.will(reply({"error": {"message": "m", "code": 400}}, status=400))
    with pytest.raises(BadRequestError) as caught:
        client.models.list()
    assert caught.value.code == 400


def test_a_refused_connection_names_the_address() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with Client(url, max_retries=0) as client, pytest.raises(APIConnectionError, match=url) as caught:
            client.models.list()
    assert not isinstance(caught.value, APITimeoutError)


def test_a_url_without_a_scheme_is_a_connection_error() -> None:
    with Client("localhost:1/v1") as client, pytest.raises(APIConnectionError, match="http"):
        client.models.list()


def test_a_connection_that_is_cut_is_a_connection_error(server: ScriptedServer, client: Client) -> None:
    server.will(hang_up)
    with pytest.raises(APIConnectionError):
        client.models.list()


def test_a_body_that_is_cut_is_a_connection_error_and_is_not_asked_for_again(server: ScriptedServer) -> None:
    server.will(reply(b'{"id', headers={"content-length": "100", "connection": "close"}))
    with Client(server.url, timeout=5, max_retries=2) as client, pytest.raises(APIConnectionError):
        client.chat.completions.create(model="m", messages=HI)
    assert len(server.seen) == 1


def test_a_connection_that_breaks_off_says_that_the_server_was_answering(server: ScriptedServer) -> None:
    cut = reply(b'{"id', headers={"content-length": "100", "connection": "close"})
    server.will(cut, stream([sse(chat_chunk("It"))], cut=True), stream([b"data: {"], cut=True))
    lost = "POST .*: the connection was lost while the server was answering \\(RemoteProtocolError"
    with Client(server.url, timeout=5) as client:
        with pytest.raises(APIConnectionLostError, match=lost):
            client.chat.completions.create(model="m", messages=HI)
        with pytest.raises(APIConnectionLostError, match=lost):
            list(client.chat.completions.create(model="m", messages=HI, stream=True))
        with pytest.raises(APIConnectionLostError, match=lost):
            client.steering.compare(Clamp(feature="s/1", value=1), "It", progress=lambda now: None)


def test_a_server_that_falls_silent_while_it_answers_has_not_lost_the_connection(server: ScriptedServer) -> None:
    server.will(stall(sse(chat_chunk("It"))))
    with Client(server.url, timeout=0.1) as client, pytest.raises(APITimeoutError):
        list(client.chat.completions.create(model="m", messages=HI, stream=True))


def test_a_read_timeout_is_not_retried(server: ScriptedServer) -> None:
    server.will(stall(), stall())
    with Client(server.url, timeout=0.1) as client, pytest.raises(APITimeoutError, match="ReadTimeout"):
        client.chat.completions.create(model="m", messages=HI)
    assert len(server.seen) == 1


def test_a_call_may_have_its_own_timeout(server: ScriptedServer, client: Client) -> None:
    server.will(stall())
    with pytest.raises(APITimeoutError):
        client.completions.create(model="m", prompt="x", timeout=0.1)
    assert "timeout" not in server.seen[0].json


def _errors() -> list[Any]:
    return [
        InternalServerError(500, "c", "p", "t", "r", "m", {"a": 1}),
        saeclamp.StreamError("m", 3, "p", "t", "r"),
        saeclamp.NotSteeredError("m", "r"),
        saeclamp.APIResponseValidationError("m", "r"),
    ]


@pytest.mark.parametrize("error", _errors(), ids=lambda error: type(error).__name__)
def test_an_error_survives_pickling(error: saeclamp.SaeclampError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (vars(copy), str(copy)) == (vars(error), str(error))
    assert json.dumps(vars(copy))
