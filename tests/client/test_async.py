"""The async client does what the sync one does. Logic is shared, so this covers the I/O and one case of each kind."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable

import httpx
import pytest
from tests.support import scripted_server as script
from tests.support.scripted_server import (
    DONE,
    MODELS,
    RECEIPT,
    ScriptedServer,
    chat_answer,
    chat_chunk,
    hang_up,
    reply,
    sse,
    text_answer,
)

from saeclamp import (
    APIConnectionError,
    APIConnectionLostError,
    APITimeoutError,
    AsyncClient,
    AsyncStream,
    BadRequestError,
    ChatCompletionChunk,
    Clamp,
    NotSteeredError,
    StreamError,
)

HI = [{"role": "user", "content": "hi"}]
CLAMP = Clamp(feature="bundled/914", value=0.74)

Scene = Callable[[AsyncClient], Awaitable[None]]


def play(server: ScriptedServer, scene: Scene, *, timeout: float = 10) -> None:
    async def main() -> None:
        async with AsyncClient(server.url, timeout=timeout) as client:
            await scene(client)

    asyncio.run(main())


async def start(client: AsyncClient, steering: Clamp | None = None) -> AsyncStream[ChatCompletionChunk]:
    return await client.chat.completions.create(model="m", messages=HI, steering=steering, stream=True)


async def hung_up(server: ScriptedServer) -> bool:
    return await asyncio.to_thread(server.hung_up.wait, 5)


def test_steered_answers_come_back_with_their_receipts(server: ScriptedServer) -> None:
    server.will(reply(chat_answer("a", steering=RECEIPT)), reply(text_answer("b", steering=RECEIPT)))

    async def scene(client: AsyncClient) -> None:
        chat = await client.chat.completions.create(model="m", messages=HI, steering=CLAMP)
        text = await client.completions.create(model="m", prompt="x", steering=CLAMP)
        assert (chat.text, text.text) == ("a", "b")
        assert chat.steering is not None
        assert chat.steering == text.steering

    play(server, scene)
    assert server.seen[0].json["steering"] == server.seen[1].json["steering"]


def test_text_without_a_receipt_is_not_handed_back(server: ScriptedServer) -> None:
    server.will(reply(chat_answer("a")))

    async def scene(client: AsyncClient) -> None:
        with pytest.raises(NotSteeredError):
            await client.chat.completions.create(model="m", messages=HI, steering=CLAMP)

    play(server, scene)


def test_the_base_model_is_looked_up_once_by_many_at_a_time(server: ScriptedServer) -> None:
    server.will(reply(MODELS), *[reply(chat_answer())] * 5)

    async def scene(client: AsyncClient) -> None:
        await asyncio.gather(*(client.chat.completions.create(messages=HI) for _ in range(5)))

    play(server, scene)
    assert server.paths().count("/v1/models") == 1
    assert [seen.json["model"] for seen in server.seen[1:]] == ["base"] * 5


def test_models_and_health(server: ScriptedServer) -> None:
    server.will(reply(MODELS), reply({}), reply({}, status=503))

    async def scene(client: AsyncClient) -> None:
        assert (await client.models.list()).ids == ["gate", "base"]
        assert await client.health() is True
        assert await client.health() is False

    play(server, scene)


def test_a_client_closes_its_own_connections_and_leaves_a_given_client_open(server: ScriptedServer) -> None:
    server.will(reply(MODELS), reply(MODELS))

    async def main() -> None:
        async with AsyncClient(server.url) as own:
            await own.models.list()
        with pytest.raises(RuntimeError, match="closed"):
            await own.models.list()
        async with httpx.AsyncClient() as given:
            async with AsyncClient(server.url, http_client=given) as client:
                await client.models.list()
            assert not given.is_closed

    asyncio.run(main())


def test_passing_failures_are_retried(server: ScriptedServer, sleeps: list[float]) -> None:
    server.will(hang_up, reply({}, status=429, headers={"retry-after": "7"}), reply(chat_answer("third")))

    async def scene(client: AsyncClient) -> None:
        assert (await client.chat.completions.create(model="m", messages=HI)).text == "third"

    play(server, scene)
    assert 0.5 <= sleeps[0] <= 1.0
    assert sleeps[1:] == [7.0]


def test_failures_are_translated(server: ScriptedServer, sleeps: list[float]) -> None:
    refusal = reply({"error": {"message": "no", "param": "p"}}, status=400, headers={"x-request-id": "r"})
    server.will(refusal, hang_up, hang_up, hang_up)

    async def scene(client: AsyncClient) -> None:
        with pytest.raises(BadRequestError) as caught:
            await client.models.list()
        assert (caught.value.message, caught.value.param, caught.value.request_id) == ("no", "p", "r")
        with pytest.raises(APIConnectionError):
            await client.models.list()

    play(server, scene)
    assert len(sleeps) == 2


def test_a_read_timeout_is_not_retried(server: ScriptedServer) -> None:
    server.will(script.stall())

    async def scene(client: AsyncClient) -> None:
        with pytest.raises(APITimeoutError):
            await client.chat.completions.create(model="m", messages=HI)

    play(server, scene, timeout=0.1)
    assert len(server.seen) == 1


def test_a_stream_is_read_with_its_receipt(server: ScriptedServer) -> None:
    data = sse(chat_chunk("é")) + sse(chat_chunk("€", steering=RECEIPT)) + DONE
    server.will(script.stream(bytes([byte]) for byte in data))

    async def scene(client: AsyncClient) -> None:
        async with await start(client, CLAMP) as stream:
            assert [chunk.text async for chunk in stream] == ["é", "€"]
        assert stream.text == "é€"
        assert stream.steering is not None
        assert [chunk async for chunk in stream] == []

    play(server, scene)


def test_a_text_completion_streams_too(server: ScriptedServer) -> None:
    server.will(script.stream([sse(text_answer("a")), DONE]))

    async def scene(client: AsyncClient) -> None:
        stream = await client.completions.create(model="m", prompt="x", stream=True)
        assert [chunk.text async for chunk in stream] == ["a"]

    play(server, scene)


@pytest.mark.parametrize(
    ("pieces", "cut", "error"),
    [
        pytest.param([sse({"error": {"message": "boom"}}), DONE], False, StreamError, id="error-event"),
        pytest.param([], False, StreamError, id="ends-before-done"),
        pytest.param([], True, APIConnectionLostError, id="connection-cut"),
        pytest.param([DONE], False, NotSteeredError, id="no-receipt"),
    ],
)
def test_a_stream_that_fails_raises_after_its_chunks(
    server: ScriptedServer, pieces: list[bytes], cut: bool, error: type[Exception]
) -> None:
    server.will(script.stream([sse(chat_chunk("a")), *pieces], cut=cut))

    async def scene(client: AsyncClient) -> None:
        stream = await start(client, CLAMP)
        assert (await anext(stream)).text == "a"
        with pytest.raises(error):
            await anext(stream)
        assert [chunk async for chunk in stream] == []

    play(server, scene)
    assert len(server.seen) == 1


def test_aclose_hangs_up(server: ScriptedServer) -> None:
    server.will(script.stream_for_ever(sse(chat_chunk())))

    async def scene(client: AsyncClient) -> None:
        stream = await start(client)
        await anext(stream)
        await stream.aclose()
        assert await hung_up(server)

    play(server, scene)


@pytest.mark.parametrize("num_read", [0, 1])
def test_a_forgotten_stream_hangs_up(server: ScriptedServer, num_read: int) -> None:
    server.will(script.stream_for_ever(sse(chat_chunk())))

    async def scene(client: AsyncClient) -> None:
        stream = await start(client)
        for _ in range(num_read):
            await anext(stream)
        del stream
        assert await hung_up(server)

    gc.disable()  # the last reference alone must do: a stream is no part of a cycle
    try:
        play(server, scene)
    finally:
        gc.enable()


def test_a_cancelled_reader_hangs_up(server: ScriptedServer) -> None:
    server.will(script.stream_for_ever(sse(chat_chunk())))

    async def read(stream: AsyncStream[ChatCompletionChunk]) -> None:
        async with stream:
            async for _ in stream:
                pass

    async def scene(client: AsyncClient) -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(read(await start(client)), 0.1)
        assert await hung_up(server)

    play(server, scene)
