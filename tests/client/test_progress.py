"""Answers that take longer say how far they are, and end in the answer or in the error that the server meant."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from tests.support.scripted_server import ScriptedServer, reply, stream, stream_for_ever

from saeclamp import (
    APIConnectionError,
    APIResponseValidationError,
    AsyncClient,
    BadRequestError,
    Clamp,
    Client,
    Progress,
    RateLimitError,
    StreamError,
)

CONTRASTED: dict[str, Any] = {"object": "contrast", "data": [], "num_features": 3, "num_significant": 0, "test": "none"}
COMPARISON: dict[str, Any] = {"object": "steering.comparison", "default": [], "steered": [], "receipts": []}


def event(**body: Any) -> bytes:
    return f"data: {json.dumps(body)}\n\n".encode()


PROGRESS = [event(type="progress", what="reading texts", done=done, of=2) for done in (0, 1)]
RESULT = event(type="result", result=CONTRASTED)


def test_progress_is_told_and_the_answer_returned(server: ScriptedServer, client: Client) -> None:
    # bytes are cut anywhere, and what a newer server says besides is passed over
    whole = b"".join((*PROGRESS, b": a comment\n\n", event(type="news"), RESULT))
    server.will(stream([whole[:7], whole[7:90], whole[90:]]))
    heard: list[Progress] = []
    found = client.features.contrast(["a"], ["b"], progress=heard.append)
    assert found.num_features == 3
    assert [(one.what, one.done, one.of) for one in heard] == [("reading texts", 0, 2), ("reading texts", 1, 2)]
    assert server.seen[0].headers["accept"] == "text/event-stream"
    assert server.seen[0].json == {"positive": ["a"], "negative": ["b"]}


def test_who_does_not_want_to_know_asks_for_json(server: ScriptedServer, client: Client) -> None:
    server.will(reply(CONTRASTED))
    assert client.features.contrast(["a"], ["b"]).num_features == 3
    assert server.seen[0].headers["accept"] == "application/json"


def test_an_older_servers_json_is_taken_too(server: ScriptedServer, client: Client) -> None:
    server.will(reply(COMPARISON))
    assert client.steering.compare(Clamp(feature="a/1", value=1), "Hi", progress=print).steered == ()


@pytest.mark.parametrize(("status", "kind"), [(400, BadRequestError), (429, RateLimitError)])
def test_an_error_in_the_middle_is_what_it_would_have_been_before(
    server: ScriptedServer, client: Client, status: int, kind: type[Exception]
) -> None:
    said = {"message": "too long", "type": "invalid_request_error", "param": "positive[3]", "code": "invalid_request"}
    server.will(stream([PROGRESS[0], event(type="error", status=status, error=said)]))
    with pytest.raises(kind) as raised:
        client.features.contrast(["a"], ["b"], progress=lambda progress: None)
    assert (raised.value.message, raised.value.param) == ("too long", "positive[3]")  # type: ignore[attr-defined]
    assert raised.value.status_code == status  # type: ignore[attr-defined]


def test_a_stream_without_a_result_is_an_error(server: ScriptedServer, client: Client) -> None:
    server.will(stream(PROGRESS))
    with pytest.raises(StreamError, match="before its result"):
        client.features.suggest("the sea", progress=lambda progress: None)
    server.will(stream(PROGRESS, cut=True))
    with pytest.raises(APIConnectionError):
        client.features.suggest("the sea", progress=lambda progress: None)
    server.will(stream([event(type="result", result={"object": "suggestion"})]))
    with pytest.raises(APIResponseValidationError):
        client.features.suggest("the sea", progress=lambda progress: None)


def test_what_the_callback_raises_ends_the_request(server: ScriptedServer, client: Client) -> None:
    def stop(progress: Progress) -> None:
        raise KeyboardInterrupt

    server.will(stream_for_ever(PROGRESS[0]))
    with pytest.raises(KeyboardInterrupt):
        client.features.attribute("a", progress=stop)
    assert server.hung_up.wait(5)


def test_the_same_with_asyncio(server: ScriptedServer) -> None:
    async def ask() -> list[Progress]:
        heard: list[Progress] = []
        async with AsyncClient(server.url, max_retries=0) as client:
            server.will(stream([*PROGRESS, RESULT]), reply(COMPARISON), stream(PROGRESS))
            assert (await client.features.contrast(["a"], ["b"], progress=heard.append)).num_features == 3
            compared = await client.steering.compare(Clamp(feature="a/1", value=1), "Hi", progress=heard.append)
            assert compared.steered == ()
            with pytest.raises(StreamError):
                await client.features.attribute("a", progress=heard.append)
        return heard

    assert [one.done for one in asyncio.run(ask())] == [0, 1, 0, 1]


def test_a_cancelled_task_hangs_up(server: ScriptedServer) -> None:
    async def ask() -> None:
        began = asyncio.Event()
        async with AsyncClient(server.url, max_retries=0) as client:
            work = asyncio.create_task(client.features.suggest("the sea", progress=lambda progress: began.set()))
            await asyncio.wait_for(began.wait(), 5)
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        assert await asyncio.to_thread(_wait, server.hung_up)

    server.will(stream_for_ever(PROGRESS[0]))
    asyncio.run(ask())


def _wait(happened: threading.Event) -> bool:
    return happened.wait(5)
