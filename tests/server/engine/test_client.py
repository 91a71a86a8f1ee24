"""Reports are fetched for many calls at once; each gets its own, or the error."""

from __future__ import annotations

import asyncio
import gc
from types import SimpleNamespace
from typing import Any

from saeclamp_server.engine.client import ReportFetcher


def report(count: int) -> dict[str, Any]:
    return {"failure": None, "prompt": [count], "tallies": [], "fired": [], "unjudged": [], "num_positions": count}


class Engine:
    """Two data-parallel engines, each with two pipeline stages of two tensor-parallel workers."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.abandoned: list[str] = []
        self.vllm_config = SimpleNamespace(parallel_config=SimpleNamespace(tensor_parallel_size=2))
        self.engine_core = self
        self.may_answer = asyncio.Event()
        self.fails = False

    async def call_utility_all_async(self, name: str, method: str, timeout: None, args: Any, kwargs: None) -> Any:
        assert (name, method) == ("collective_rpc", "steering_reports")
        keys, abandoned = args
        self.asked.append(keys)
        self.abandoned += abandoned
        await self.may_answer.wait()
        if self.fails:
            raise RuntimeError("the engine died")
        first = [{key: {f"{key}-0": report(1)} for key in keys}, {key: {f"{key}-0": report(2)} for key in keys}]
        second = [{key: {f"{key}-1": report(3)} for key in keys}] * 2
        return [[worker for worker in stages for _ in range(2)] for stages in (first, second)]


def test_calls_that_end_while_reports_are_fetched_share_the_next_fetch() -> None:
    async def go() -> None:
        engine = Engine()
        reports = ReportFetcher(engine)
        calls = [asyncio.create_task(reports.fetch("a"))]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        calls += [asyncio.create_task(reports.fetch(key)) for key in ("b", "c", "d")]
        calls[2].cancel()  # its client has gone
        await asyncio.sleep(0)
        calls[3].cancel()
        engine.may_answer.set()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert engine.asked == [["a"], ["b", "d"]]
        for key, answer in zip("ab", answers, strict=False):
            assert isinstance(answer, dict)
            assert {request_id: one["prompt"] for request_id, one in answer.items()} == {
                f"{key}-0": [2],
                f"{key}-1": [3],
            }
        assert [type(answer) for answer in answers[2:]] == [asyncio.CancelledError] * 2
        # and again, when all has been fetched
        assert set(await reports.fetch("e")) == {"e-0", "e-1"}

    asyncio.run(go())


def test_what_fails_fails_every_call_that_waits_and_no_later_one() -> None:
    async def go() -> None:
        engine = Engine()
        engine.may_answer.set()
        engine.fails = True
        reports = ReportFetcher(engine)
        answers = await asyncio.gather(reports.fetch("a"), reports.fetch("b"), return_exceptions=True)
        assert [str(answer) for answer in answers] == ["the engine died"] * 2
        engine.fails = False
        assert set(await reports.fetch("c")) == {"c-0", "c-1"}

    asyncio.run(go())


def test_what_a_departed_client_leaves_is_forgotten_by_the_engine_and_what_was_fetched_is_not_asked_for_again() -> None:
    async def go() -> None:
        engine = Engine()
        engine.may_answer.set()
        reports = ReportFetcher(engine)
        await reports.fetch("answered")
        reports.close("answered")
        for key in ("gone", "also gone"):
            reports.close(key)
        await reports.fetch("next")
        assert engine.abandoned == ["gone", "also gone"]
        assert engine.asked == [["answered"], ["next"]]

    asyncio.run(go())


def test_what_is_left_behind_when_the_engine_has_died_is_no_complaint() -> None:
    async def go() -> None:
        engine = Engine()
        engine.may_answer.set()
        engine.fails = True
        complaints: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        ReportFetcher(engine).close("gone")
        for _ in range(5):
            await asyncio.sleep(0)
        gc.collect()
        assert complaints == []

    asyncio.run(go())
