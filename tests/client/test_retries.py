"""When a request is sent again, and after how long."""

from __future__ import annotations

import time
from email.utils import formatdate

import httpx
import pytest
from tests.support.scripted_server import MODELS, ScriptedServer, chat_answer, hang_up, reply

from saeclamp import APIConnectionError, APIStatusError, Client, InternalServerError, RateLimitError
from saeclamp._retries import backoff, delay_after_error, delay_after_status

HI = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_passing_failure_is_retried(server: ScriptedServer, client: Client, sleeps: list[float], status: int) -> None:
    server.will(reply({}, status=status), reply({}, status=status), reply(chat_answer("third")))
    assert client.chat.completions.create(model="m", messages=HI).text == "third"
    assert len(sleeps) == 2
    assert server.seen[0].json == server.seen[1].json == server.seen[2].json


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 409, 413, 422, 501])
def test_a_lasting_failure_is_not_retried(
    server: ScriptedServer, client: Client, sleeps: list[float], status: int
) -> None:
    server.will(reply({}, status=status), reply(chat_answer()))
    with pytest.raises(APIStatusError):
        client.chat.completions.create(model="m", messages=HI)
    assert (sleeps, len(server.seen)) == ([], 1)


def test_retries_end(server: ScriptedServer, client: Client, sleeps: list[float]) -> None:
    server.will(*[reply({"error": {"message": "full"}}, status=429)] * 3, reply(MODELS))
    with pytest.raises(RateLimitError, match="full"):
        client.models.list()
    assert (len(sleeps), len(server.seen)) == (2, 3)


def test_a_cut_connection_is_retried(server: ScriptedServer, client: Client, sleeps: list[float]) -> None:
    server.will(hang_up, reply(MODELS))
    assert client.models.list().ids == ["gate", "base"]
    assert len(sleeps) == 1


def test_cut_connections_end_in_a_connection_error(server: ScriptedServer, sleeps: list[float]) -> None:
    server.will(hang_up, hang_up)
    with Client(server.url, max_retries=1) as client, pytest.raises(APIConnectionError):
        client.models.list()
    assert (len(sleeps), len(server.seen)) == (1, 2)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param({"retry-after": "3"}, 3.0, id="seconds"),
        pytest.param({"retry-after": "0"}, 0.0, id="at-once"),
        pytest.param({"retry-after": "1.5"}, 1.5, id="fraction"),
        pytest.param({"retry-after-ms": "250", "retry-after": "3"}, 0.25, id="milliseconds-first"),
        pytest.param({"retry-after-ms": "soon", "retry-after": "3"}, 3.0, id="milliseconds-unreadable"),
        pytest.param({"retry-after": "3600"}, 60.0, id="capped"),
        pytest.param({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0, id="date-in-the-past"),
    ],
)
def test_the_server_says_how_long_to_wait(
    server: ScriptedServer, client: Client, sleeps: list[float], headers: dict[str, str], expected: float
) -> None:
    server.will(reply({}, status=503, headers=headers), reply(MODELS))
    client.models.list()
    assert sleeps == [expected]


def test_a_date_to_wait_for_is_understood(server: ScriptedServer, client: Client, sleeps: list[float]) -> None:
    server.will(reply({}, status=429, headers={"retry-after": formatdate(time.time() + 20, usegmt=True)}))
    server.will(reply(MODELS))
    client.models.list()
    assert 15 < sleeps[0] <= 20


@pytest.mark.parametrize("value", ["soon", "-1", "nan", "inf", ""])
def test_an_unreadable_wait_falls_back_to_backoff(
    server: ScriptedServer, client: Client, sleeps: list[float], value: str
) -> None:
    server.will(reply({}, status=429, headers={"retry-after": value}), reply(MODELS))
    client.models.list()
    assert 0.5 <= sleeps[0] <= 1.0


def test_the_server_may_order_a_retry(server: ScriptedServer, client: Client, sleeps: list[float]) -> None:
    server.will(reply({}, status=409, headers={"x-should-retry": "true"}), reply(MODELS))
    assert client.models.list().ids == ["gate", "base"]
    assert len(sleeps) == 1


def test_the_server_may_forbid_a_retry(server: ScriptedServer, client: Client, sleeps: list[float]) -> None:
    server.will(reply({}, status=503, headers={"x-should-retry": "false"}), reply(MODELS))
    with pytest.raises(InternalServerError):
        client.models.list()
    assert sleeps == []


def test_health_is_asked_once(server: ScriptedServer, client: Client, sleeps: list[float]) -> None:
    server.will(reply({}, status=503), reply({}))
    assert client.health() is False
    assert (sleeps, len(server.seen)) == ([], 1)


@pytest.mark.parametrize(("attempt", "ceiling"), [(0, 1.0), (1, 2.0), (2, 4.0), (3, 8.0), (4, 8.0), (5000, 8.0)])
def test_backoff_doubles_up_to_eight_seconds(attempt: int, ceiling: float) -> None:
    drawn = [backoff(attempt) for _ in range(500)]
    assert min(drawn) >= 0.5
    assert 0.9 * ceiling < max(drawn) <= ceiling


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (httpx.ConnectError, True),
        (httpx.ConnectTimeout, True),
        (httpx.PoolTimeout, True),
        (httpx.RemoteProtocolError, True),
        (httpx.ReadError, True),
        (httpx.ReadTimeout, False),
        (httpx.WriteTimeout, False),
        (httpx.UnsupportedProtocol, False),
        (httpx.LocalProtocolError, False),
    ],
)
def test_only_what_cannot_have_been_answered_is_sent_again(error: type[httpx.RequestError], again: bool) -> None:
    assert (delay_after_error(error("x"), 0, 2) is not None) is again
    assert delay_after_error(error("x"), 2, 2) is None


def test_no_retry_without_a_retry_left() -> None:
    assert delay_after_status(httpx.Response(503, headers={"x-should-retry": "true"}), 0, 0) is None
