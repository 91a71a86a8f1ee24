"""Long answers: JSON or events, and work that ends when nobody waits for it any more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response

from saeclamp.types import DeletedVector, Suggest
from saeclamp_saes.concurrency import gather_first_error
from saeclamp_server.api import event_stream, strict_route
from saeclamp_server.api.error_handlers import refuse
from saeclamp_server.api.model_client import GenerateRequest, GenerateResult, ModelClient
from saeclamp_server.api.model_share import CellBudget, ModelShare
from saeclamp_server.api.progress import ProgressCounter
from saeclamp_server.errors import InvalidRequestError, RequestError

ANSWER = DeletedVector(name="done", deleted=True)
QUICK = {"opens_after_s": 0.02, "every_s": 0.02}
Work = Callable[[ModelClient, ProgressCounter], Awaitable[DeletedVector]]


class SlowModel:
    """Generates a token a hundredth of a second, and counts what it runs: the engine, as far as these tests go."""

    name, num_tokens = "slow", 10

    def __init__(self) -> None:
        self.running = self.most = self.begun = 0

    async def run(self, run: GenerateRequest, path: str, heard: Callable[[int], None] | None = None) -> Any:
        self.running += 1
        self.begun += 1
        self.most = max(self.most, self.running)
        try:
            for number in range(run.max_tokens):
                await asyncio.sleep(0.01)
                if heard is not None:
                    heard(number + 1)
        finally:
            self.running -= 1


def app(work: Work, model: Any = None, **times: float) -> FastAPI:
    router = strict_route.strict_router(ends_with_client=True)

    @router.post("/long")
    async def long(body: Suggest, request: Request) -> Response:
        return await event_stream.answer_long(request, work, **times)

    served = FastAPI()
    served.include_router(router)
    served.add_exception_handler(RequestError, refuse)
    served.state.saeclamp = SimpleNamespace(model=model or SlowModel(), cells=CellBudget())
    return served


def ask(served: FastAPI, accept: str) -> httpx.Response:
    async def posted() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(served), base_url="http://test") as http:
            return await http.post("/long", json={"wish": "something"}, headers={"Accept": accept})

    return asyncio.run(posted())


def events(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") for block in blocks)
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


async def at_length(model: ModelClient, counter: ProgressCounter) -> DeletedVector:
    counter.begin("reading", 2)
    counter.step()
    await asyncio.sleep(0.1)
    counter.begin("writing", 1)
    await asyncio.sleep(0.1)
    return ANSWER


async def in_vain(model: ModelClient, counter: ProgressCounter) -> DeletedVector:
    await asyncio.sleep(0.1)
    raise InvalidRequestError("wish: it cannot be.", "wish")


async def at_once(model: ModelClient, counter: ProgressCounter) -> DeletedVector:
    raise InvalidRequestError("wish: it cannot be.", "wish")


def test_without_being_asked_for_events_an_answer_is_json() -> None:
    response = ask(app(at_length), "application/json")
    assert response.headers["content-type"] == "application/json"
    assert response.json() == ANSWER.model_dump()


def test_events_say_what_is_done_and_end_with_the_result() -> None:
    assert events(ask(app(at_length, **QUICK), "text/event-stream")) == [
        {"type": "progress", "what": "reading", "done": 1, "of": 2},
        {"type": "progress", "what": "writing", "done": 0, "of": 1},
        {"type": "result", "result": {"object": "vector", "name": "done", "deleted": True}},
    ]


def test_a_refusal_that_is_known_at_once_keeps_its_status() -> None:
    response = ask(app(at_once), "text/event-stream")
    assert (response.status_code, response.json()["error"]["param"]) == (400, "wish")


def test_a_later_refusal_is_the_last_event() -> None:
    *_, last = events(ask(app(in_vain, **QUICK), "text/event-stream"))
    said = {"message": "wish: it cannot be.", "type": "invalid_request_error", "param": "wish"}
    assert last == {"type": "error", "status": 400, "error": {**said, "code": "invalid_request"}}


def test_a_failure_is_the_last_event_and_goes_to_the_log_too() -> None:
    async def fails(model: ModelClient, counter: ProgressCounter) -> DeletedVector:
        await asyncio.sleep(0.1)
        raise ZeroDivisionError

    sent: list[Any] = []
    with pytest.raises(ZeroDivisionError):
        asyncio.run(posted_by_hand(app(fails, **QUICK), "text/event-stream", sent, stays=True))
    last = json.loads(sent[-1]["body"].removeprefix(b"data: "))
    assert (last["status"], last["error"]["code"], sent[-1]["more_body"]) == (500, "server_failed", False)


async def posted_by_hand(
    served: FastAPI, accept: str, sent: list[Any], stays: bool = False, hangs_up_after_s: float = 0.1
) -> None:
    body = json.dumps({"wish": "something"}).encode()
    headers = [(b"content-type", b"application/json"), (b"accept", accept.encode())]
    scope = {"type": "http", "method": "POST", "path": "/long", "query_string": b"", "headers": headers}
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await asyncio.sleep(60 if stays else hangs_up_after_s)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await served(scope, receive, send)


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_all_that_was_begun_ends_when_the_client_hangs_up(accept: str) -> None:
    async def many(model: ModelClient, counter: ProgressCounter) -> DeletedVector:
        async def one(number: int) -> None:
            for _ in range(1000):
                await model.run(GenerateRequest((1,), max_tokens=5), "wish")

        await gather_first_error(one(number) for number in range(10))
        return ANSWER

    async def hung_up() -> tuple[int, int]:
        await posted_by_hand(app(many, model, **QUICK), accept, sent)
        begun = model.begun
        await asyncio.sleep(0.1)
        return begun, model.begun

    model, sent = SlowModel(), list[Any]()
    before, after = asyncio.run(hung_up())
    assert before >= 10
    assert after == before
    assert model.running == 0
    assert not any(b"result" in message.get("body", b"") for message in sent)


def test_one_request_runs_so_many_sequences_at_once_and_all_of_them_as_many_as_have_room() -> None:
    async def most(room: CellBudget, *runs: GenerateRequest) -> int:
        model = SlowModel()
        share = ModelShare(model, room, ProgressCounter())  # type: ignore[arg-type]
        await gather_first_error(share.run(run, "text") for run in runs)
        return model.most

    short = GenerateRequest((1, 2), max_tokens=3)
    scored = GenerateRequest((1,) * 100, max_tokens=3, prompt_logprobs=20)
    assert (short.num_cells, scored.num_cells) == (0, 2100)
    assert asyncio.run(most(CellBudget(), *[short] * 100)) == 64
    assert asyncio.run(most(CellBudget(7000), *[scored] * 10)) == 3
    assert asyncio.run(most(CellBudget(1000), *[scored] * 4)) == 1  # what would never fit has all the room


def test_room_is_given_back_by_those_that_stop_waiting() -> None:
    async def after_cancelling() -> str:
        room = CellBudget(10)
        async with room.taken(8):
            waiting = asyncio.create_task(anext_entered(room, 5))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            async with room.taken(2):
                pass
        async with asyncio.timeout(1), room.taken(10):
            return "all of it"

    async def anext_entered(room: CellBudget, num: int) -> None:
        async with room.taken(num):
            pass

    assert asyncio.run(after_cancelling()) == "all of it"


def test_the_first_error_ends_what_was_begun_beside_it() -> None:
    model = SlowModel()

    async def fails() -> GenerateResult:
        await asyncio.sleep(0.02)
        raise InvalidRequestError("no", None)

    async def both() -> None:
        await gather_first_error([model.run(GenerateRequest((1,), max_tokens=500), "text"), fails()])

    with pytest.raises(InvalidRequestError):
        asyncio.run(both())
    assert model.running == 0


def test_progress_grows_and_never_says_more_than_all() -> None:
    counter = ProgressCounter()
    counter.begin("answering", 4)
    counter.expect(3)
    counter.expect(3)
    counter.step(5)
    assert (counter.now.done, counter.now.of) == (5, 6)
    counter.step(5)
    assert (counter.now.done, counter.now.of) == (6, 6)
    counter.begin("judging")
    counter.step()
    assert (counter.now.what, counter.now.done, counter.now.of) == ("judging", 0, 0)
