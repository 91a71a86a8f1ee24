"""Streams: chunks, the receipt at the end, errors in the middle, and connections that are closed."""

from __future__ import annotations

import gc

import pytest
from tests.support import scripted_server as script
from tests.support.scripted_server import DONE, RECEIPT, ScriptedServer, chat_chunk, reply, sse, text_answer

from saeclamp import (
    APIConnectionError,
    APIResponseValidationError,
    APITimeoutError,
    BadRequestError,
    ChatCompletionChunk,
    Clamp,
    Client,
    NotSteeredError,
    Steering,
    Stream,
    StreamError,
)

HI = [{"role": "user", "content": "hi"}]
CLAMP = Clamp(feature="bundled/914", value=0.74)


def start(client: Client, steering: Steering | Clamp | None = None) -> Stream[ChatCompletionChunk]:
    return client.chat.completions.create(model="m", messages=HI, steering=steering, stream=True)


def test_chunks_come_typed_and_the_receipt_comes_last(server: ScriptedServer, client: Client) -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    last = {**chat_chunk(), "choices": [], "usage": usage, "steering": RECEIPT}
    pieces = [b": ping\n\n", sse(chat_chunk("Gol", nonce=1)), sse(chat_chunk("den\u2028")), sse(last), DONE]
    server.will(script.stream(pieces, headers={"x-request-id": "r3"}))
    stream = start(client, CLAMP)
    assert server.seen[0].json["stream"] is True
    with pytest.raises(NotSteeredError, match="read the stream to its end"):
        _ = stream.steering

    chunks = list(stream)
    assert [chunk.text for chunk in chunks] == ["Gol", "den\u2028", ""]
    assert chunks[0].choices[0].delta.content == "Gol"
    assert chunks[0].model_extra == {"nonce": 1}
    assert chunks[2].usage is not None
    assert chunks[2].usage.total_tokens == 3
    assert stream.text == "Golden\u2028"
    assert stream.request_id == "r3"
    assert stream.steering is not None
    assert stream.steering.interventions[0].tokens.prompt == 23


def test_a_text_completion_streams_too(server: ScriptedServer, client: Client) -> None:
    server.will(script.stream([sse(text_answer("a")), sse(text_answer("b", steering=RECEIPT)), DONE]))
    with client.completions.create(model="m", prompt="x", steering=CLAMP, stream=True) as stream:
        assert [chunk.choices[0].text for chunk in stream] == ["a", "b"]
    assert stream.steering is not None


def test_a_stream_cut_at_every_byte_is_read_whole(server: ScriptedServer, client: Client) -> None:
    data = sse(chat_chunk("é€")) + sse(chat_chunk("😀")) + DONE
    server.will(script.stream(bytes([byte]) for byte in data))
    assert [chunk.text for chunk in start(client)] == ["é€", "😀"]


def test_tool_calls_arrive_in_pieces(server: ScriptedServer, client: Client) -> None:
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a'}}
    chunk = {**chat_chunk(), "choices": [{"index": 0, "delta": {"role": "assistant", "tool_calls": [call]}}]}
    server.will(script.stream([sse(chunk), DONE]))
    delta = next(start(client)).choices[0].delta
    assert delta.role == "assistant"
    assert delta.tool_calls is not None
    assert delta.tool_calls[0].function is not None
    assert delta.tool_calls[0].function.arguments == '{"a'


def test_text_is_the_first_choice_alone(server: ScriptedServer, client: Client) -> None:
    other = {**chat_chunk(), "choices": [{"index": 1, "delta": {"content": "no"}}]}
    server.will(script.stream([sse(chat_chunk("yes")), sse(other), DONE]))
    stream = start(client)
    assert len(list(stream)) == 2
    assert stream.text == "yes"


def test_a_stream_is_iterated_once(server: ScriptedServer, client: Client) -> None:
    server.will(script.stream([sse(chat_chunk("a")), sse(chat_chunk("b")), DONE]))
    stream = start(client)
    assert [next(stream).text, *(chunk.text for chunk in stream)] == ["a", "b"]
    assert list(stream) == []


def test_nothing_is_read_after_done(server: ScriptedServer, client: Client) -> None:
    server.will(script.stream([sse(chat_chunk("a")), DONE, sse(chat_chunk("b"))]))
    assert [chunk.text for chunk in start(client)] == ["a"]


def test_an_error_event_ends_the_stream_after_the_chunks_before_it(server: ScriptedServer, client: Client) -> None:
    error = {"error": {"message": "out of memory", "type": "server_error", "param": "p", "code": "oom"}}
    pieces = [sse(chat_chunk("a")) + sse(error) + DONE]  # one read, so that the chunk and the error arrive together
    server.will(script.stream(pieces, headers={"x-request-id": "r4"}))
    stream = start(client, CLAMP)
    assert next(stream).text == "a"
    with pytest.raises(StreamError, match="out of memory") as caught:
        next(stream)
    raised = caught.value
    assert (raised.type, raised.param, raised.code, raised.request_id) == ("server_error", "p", "oom", "r4")
    assert list(stream) == []


@pytest.mark.parametrize("event", [b'data: {"error": "boom"}\n\n', b'event: error\ndata: {"message": "boom"}\n\n'])
def test_other_shapes_of_error_events_are_errors_too(server: ScriptedServer, client: Client, event: bytes) -> None:
    server.will(script.stream([event, DONE]))
    with pytest.raises(StreamError, match="boom"):
        next(start(client))


def test_named_events_are_not_chunks(server: ScriptedServer, client: Client) -> None:
    server.will(script.stream([b"event: ping\ndata: {}\n\n", sse(chat_chunk("a")), DONE]))
    assert [chunk.text for chunk in start(client)] == ["a"]


@pytest.mark.parametrize("data", [b"data: {\n\n", b"data: 1\n\n", b'data: {"choices": 1}\n\n'])
def test_an_event_that_is_no_chunk_is_refused(server: ScriptedServer, client: Client, data: bytes) -> None:
    server.will(script.stream([data, DONE]))
    with pytest.raises(APIResponseValidationError):
        next(start(client))


@pytest.mark.parametrize("extra", [{}, {"steering": {**RECEIPT, "applied": False}}])
def test_a_stream_without_a_receipt_ends_in_an_error(
    server: ScriptedServer, client: Client, extra: dict[str, object]
) -> None:
    server.will(script.stream([sse(chat_chunk("a", **extra)), DONE], headers={"x-request-id": "r5"}))
    stream = start(client, CLAMP)
    assert next(stream).text == "a"
    with pytest.raises(NotSteeredError) as caught:
        next(stream)
    assert caught.value.request_id == "r5"


def test_no_receipt_is_expected_of_a_stream_that_asked_for_none(server: ScriptedServer, client: Client) -> None:
    server.will(script.stream([sse(chat_chunk("a")), DONE]))
    stream = start(client, Steering(interventions=(CLAMP,), receipt="none"))
    assert [chunk.text for chunk in stream] == ["a"]
    assert stream.steering is None


def test_a_receipt_is_kept_when_a_chunk_follows_it(server: ScriptedServer, client: Client) -> None:
    server.will(script.stream([sse(chat_chunk("a", steering=RECEIPT)), sse(chat_chunk("b", steering=None)), DONE]))
    stream = start(client, CLAMP)
    assert [chunk.text for chunk in stream] == ["a", "b"]
    assert stream.steering is not None


def test_a_stream_that_ends_before_done_is_an_error(server: ScriptedServer, client: Client) -> None:
    server.will(script.stream([sse(chat_chunk("a"))]))
    stream = start(client)
    assert next(stream).text == "a"
    with pytest.raises(StreamError, match="DONE"):
        next(stream)


def test_a_broken_connection_is_a_connection_error_and_is_not_retried(server: ScriptedServer, client: Client) -> None:
    server.will(script.stream([sse(chat_chunk("a"))], cut=True))
    stream = start(client)
    assert next(stream).text == "a"
    with pytest.raises(APIConnectionError):
        next(stream)
    assert len(server.seen) == 1


def test_silence_in_a_stream_is_a_timeout(server: ScriptedServer) -> None:
    server.will(script.stall(sse(chat_chunk("a"))))
    with Client(server.url, timeout=0.1) as client:
        stream = start(client)
        assert next(stream).text == "a"
        with pytest.raises(APITimeoutError):
            next(stream)
    assert len(server.seen) == 1


def test_a_refusal_is_raised_before_the_stream_exists(server: ScriptedServer, client: Client) -> None:
    server.will(reply({"error": {"message": "no"}}, status=400))
    with pytest.raises(BadRequestError, match="no"):
        start(client)


def test_a_stream_is_retried_before_it_has_begun(server: ScriptedServer, client: Client, sleeps: list[float]) -> None:
    server.will(reply({}, status=503), script.stream([sse(chat_chunk("a")), DONE]))
    assert [chunk.text for chunk in start(client)] == ["a"]
    assert len(sleeps) == 1


def test_close_hangs_up(server: ScriptedServer, client: Client) -> None:
    server.will(script.stream_for_ever(sse(chat_chunk())))
    stream = start(client)
    next(stream)
    stream.close()
    assert server.hung_up.wait(5)
    assert list(stream) == []


def test_leaving_a_with_block_hangs_up(server: ScriptedServer, client: Client) -> None:
    server.will(script.stream_for_ever(sse(chat_chunk())))
    with start(client) as stream:
        next(stream)
    assert server.hung_up.wait(5)


@pytest.mark.parametrize("num_read", [0, 1])
def test_a_forgotten_stream_hangs_up(server: ScriptedServer, client: Client, num_read: int) -> None:
    server.will(script.stream_for_ever(sse(chat_chunk())))
    gc.disable()  # the last reference alone must do: a stream is no part of a cycle
    try:
        stream = start(client)
        for _ in range(num_read):
            next(stream)
        del stream
        assert server.hung_up.wait(5)
    finally:
        gc.enable()


def test_an_error_hangs_up(server: ScriptedServer, client: Client) -> None:
    server.will(script.stream_for_ever(b"data: nonsense\n\n"))
    stream = start(client)
    with pytest.raises(APIResponseValidationError):
        next(stream)
    assert server.hung_up.wait(5)


def test_a_finished_stream_leaves_the_client_usable(server: ScriptedServer, client: Client) -> None:
    for _ in range(3):
        server.will(script.stream([sse(chat_chunk("a")), DONE]))
        assert [chunk.text for chunk in start(client)] == ["a"]
