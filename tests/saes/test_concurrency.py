"""The first error of a group ends the group."""

from __future__ import annotations

import asyncio
import traceback

import pytest

from saeclamp_saes.concurrency import gather_first_error


class Worker:
    """A coroutine that notes how it ended, after some time to clean up."""

    def __init__(self) -> None:
        self.ended = ""

    async def wait(self, seconds: float = 60) -> str:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)
            self.ended = "cancelled"
            raise
        self.ended = "done"
        return f"after {seconds}"


async def fail(error: BaseException, seconds: float = 0.01) -> str:
    await asyncio.sleep(seconds)
    raise error


def test_results_are_in_order_whatever_is_done_first() -> None:
    waits = (0.03, 0.0, 0.02)
    assert asyncio.run(gather_first_error(Worker().wait(seconds) for seconds in waits)) == [
        "after 0.03",
        "after 0.0",
        "after 0.02",
    ]
    assert asyncio.run(gather_first_error([])) == []


def test_the_first_error_is_raised_alone_when_all_others_have_ended() -> None:
    workers = [Worker(), Worker()]
    error = ValueError("first")
    with pytest.raises(ValueError, match="first") as raised:
        asyncio.run(
            gather_first_error([workers[0].wait(), fail(KeyError("second"), 5), fail(error), workers[1].wait()])
        )
    assert raised.value is error
    assert [worker.ended for worker in workers] == ["cancelled", "cancelled"]


def test_what_fails_while_it_is_cancelled_is_not_the_first() -> None:
    async def fails_when_cancelled() -> str:
        try:
            return await Worker().wait()
        finally:
            raise KeyError("second")

    with pytest.raises(ValueError, match="first"):
        asyncio.run(gather_first_error([fails_when_cancelled(), fail(ValueError("first"))]))


def test_groups_in_a_group_raise_one_error_too() -> None:
    worker = Worker()
    with pytest.raises(ValueError, match="inner"):
        asyncio.run(gather_first_error([gather_first_error([worker.wait(), fail(ValueError("inner"))])]))
    assert worker.ended == "cancelled"


def test_cancelling_from_outside_cancels_all() -> None:
    async def cancelled() -> None:
        gathered = asyncio.ensure_future(gather_first_error(worker.wait() for worker in workers))
        await asyncio.sleep(0.01)
        gathered.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gathered

    workers = [Worker(), Worker(), Worker()]
    asyncio.run(cancelled())
    assert {worker.ended for worker in workers} == {"cancelled"}


def test_an_interrupt_is_no_error_of_the_group() -> None:
    worker = Worker()
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(gather_first_error([worker.wait(), fail(KeyboardInterrupt())]))
    assert worker.ended == "cancelled"


def test_an_error_shows_its_own_cause_and_no_group() -> None:
    async def fails_because() -> None:
        try:
            raise KeyError("cause")
        except KeyError as exc:
            raise ValueError("effect") from exc

    with pytest.raises(ValueError, match="effect") as raised:
        asyncio.run(gather_first_error([fails_because()]))
    shown = "".join(traceback.format_exception(raised.value))
    assert isinstance(raised.value.__cause__, KeyError)
    assert "ExceptionGroup" not in shown
