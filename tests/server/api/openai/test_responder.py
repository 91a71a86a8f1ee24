"""The receipt rides in the last chunk, and nothing else in a stream changes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from saeclamp import Receipt
from saeclamp_server.api.openai.responder import complete_stream
from saeclamp_server.errors import NotAppliedError

RECEIPT = Receipt(applied=True, spec="sha256:x", model="m", sae={}, interventions=())
DONE = "data: [DONE]\n\n"


class Call:
    """Answers as the engine would."""

    def __init__(self, wants_receipt: bool = True, failure: str | None = None) -> None:
        self.wants_receipt = wants_receipt
        self.failure = failure
        self.asked = self.ended = 0
        self.aborts: set[int] = set()
        self.said: list[str] = []

    completes = False

    def complete(self, body: dict[str, Any]) -> None:
        body["completed"] = True

    def aborted(self, receipt: Receipt) -> set[int]:
        return self.aborts

    def end(self) -> None:
        self.ended += 1

    def failed(self, message: str) -> None:
        self.said.append(message)

    async def receipt(self) -> Receipt:
        self.asked += 1
        if self.failure is not None:
            raise NotAppliedError(self.failure)
        return RECEIPT


def empty_chunk(index: int) -> dict[str, Any]:
    return {"id": "c", "choices": [{"index": index, "text": "", "finish_reason": "content_filter"}]}


def chunk(text: str, finish_reason: str | None = None, index: int = 0) -> str:
    choice = {"index": index, "text": text, "finish_reason": finish_reason}
    return f"data: {json.dumps({'id': 'c', 'choices': [choice]}, separators=(',', ':'))}\n\n"


USAGE = 'data: {"id":"c","choices":[],"usage":{"total_tokens":3}}\n\n'


def passed_on(events: list[str], call: Call) -> list[str]:
    async def source() -> AsyncIterator[str]:
        for event in events:
            yield event

    async def collect() -> list[str]:
        return [event async for event in complete_stream(source(), call, empty_chunk)]

    return asyncio.run(collect())


def has_receipt(event: str) -> bool:
    return event.startswith("data: {") and "steering" in json.loads(event.removeprefix("data: "))


@pytest.mark.parametrize(
    "events",
    [
        [chunk("a"), chunk("b"), chunk("", "stop"), DONE],
        [chunk("a"), chunk("", "stop"), USAGE, DONE],
        [chunk("a", index=1), chunk("", "stop", 0), chunk("b", index=1), chunk("", "length", 1), DONE],
        [": keep-alive\n\n", chunk("a", "stop"), DONE],
        [chunk('says "finish_reason":"stop" itself'), chunk("", "stop"), DONE],
    ],
    ids=["plain", "with usage", "a choice ends early", "keep-alive", "text like a chunk"],
)
def test_only_the_last_chunk_changes(events: list[str]) -> None:
    received = passed_on(events, Call())
    assert received[:-2] == events[:-2]
    assert received[-1] == DONE
    last, before = (json.loads(event.removeprefix("data: ")) for event in (received[-2], events[-2]))
    assert last == before | {"steering": RECEIPT.model_dump(mode="json")}
    assert [has_receipt(event) for event in received].count(True) == 1


def test_chunks_are_not_held_back_while_text_is_coming() -> None:
    seen: list[str] = []

    async def source() -> AsyncIterator[str]:
        for number in range(3):
            yield chunk(str(number))
            assert len(seen) == number + 1, "the chunk must have been passed on before the next is asked for"
        yield chunk("", "stop")
        yield DONE

    async def read() -> None:
        async for event in complete_stream(source(), Call(), empty_chunk):
            seen.append(event)

    asyncio.run(read())
    assert len(seen) == 5


def test_a_declined_receipt_is_still_checked() -> None:
    events = [chunk("a"), chunk("", "stop"), DONE]
    call = Call(wants_receipt=False)
    assert passed_on(events, call) == events
    assert call.asked == 1
    received = passed_on(events, Call(wants_receipt=False, failure="lost"))
    assert json.loads(received[-2].removeprefix("data: "))["error"]["code"] == "steering_not_applied"


def test_a_request_that_was_not_steered_ends_in_an_error_instead_of_its_last_chunk() -> None:
    received = passed_on([chunk(""), chunk("tail", "stop"), DONE], Call(failure="no rows"))
    assert received[0] == chunk("")
    error = json.loads(received[1].removeprefix("data: "))["error"]
    assert "no rows" in error["message"]
    assert received[2:] == [DONE]
    assert "tail" not in "".join(received)


def test_an_error_of_vllms_passes_as_it_is() -> None:
    events = [chunk("a"), 'data: {"error":{"message":"out of memory"}}\n\n', DONE]
    call = Call()
    assert passed_on(events, call) == events
    assert call.said == ["out of memory"]


def test_a_stream_that_breaks_off_is_not_taken_for_a_whole_one() -> None:
    assert has_receipt(passed_on([chunk("a"), chunk("", "stop")], Call())[-1])
    broken = passed_on([chunk("a"), DONE], Call())
    assert "error" in json.loads(broken[-2].removeprefix("data: "))
