"""Requests wait for features in the order they came, and too many of them are turned away."""

from __future__ import annotations

import asyncio

import pytest

from saeclamp_server.errors import BusyError, InvalidSteeringError
from saeclamp_server.steering.admission import Admission, requested_features
from saeclamp_server.steering.program import ComparisonSpec, EditSpec, ReadoutSpec, RuleSpec, SteeringProgram


def some(*indices: int) -> frozenset[tuple[str, int]]:
    return frozenset(("a", index) for index in indices)


async def turn() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def test_all_that_a_program_touches_counts_once() -> None:
    rule = RuleSpec((ComparisonSpec("b", 1, 2.0, True), ComparisonSpec("a", 1, 2.0, True)), ("all", (0, 1)))
    edits = (EditSpec("a", 1, "clamp", 1.0), EditSpec("a", 2, "clamp", 1.0))
    program = SteeringProgram(edits, (), (rule,), ReadoutSpec((("c", 9), ("a", 2))))
    assert requested_features(program) == {("a", 1), ("a", 2), ("b", 1), ("c", 9)}


def test_shared_features_take_room_once_and_those_that_wait_enter_in_their_order() -> None:
    async def run() -> None:
        admission, entered = Admission(3, 10), list[str]()

        async def ask(name: str, features: frozenset[tuple[str, int]]) -> None:
            await admission.acquire(features)
            entered.append(name)

        await ask("first", some(1, 2))
        await ask("shares", some(2, 3))
        waiting = [asyncio.create_task(ask("large", some(4, 5)))]
        await turn()
        waiting.append(asyncio.create_task(ask("fits, but came later", some(1))))
        await turn()
        assert (entered, admission.num_in_use, admission.num_waiting) == (["first", "shares"], 3, 2)
        admission.release(some(1, 2))
        await turn()
        assert entered == ["first", "shares"], "2 is still in use"
        admission.release(some(2, 3))
        await asyncio.gather(*waiting)
        assert entered == ["first", "shares", "large", "fits, but came later"]
        admission.release(some(4, 5))
        admission.release(some(1))
        assert (admission.num_in_use, admission.num_waiting) == (0, 0)

    asyncio.run(run())


def test_who_gives_up_waiting_holds_nothing_and_holds_nobody_up() -> None:
    async def run() -> None:
        admission = Admission(2, 10)
        await admission.acquire(some(1))
        large = asyncio.create_task(admission.acquire(some(2, 3)))
        await turn()
        small = asyncio.create_task(admission.acquire(some(2)))
        await turn()
        assert admission.num_waiting == 2
        large.cancel()
        await small
        assert (admission.num_in_use, admission.num_waiting) == (2, 0)
        # let in and cancelled in the same turn of the loop
        late = asyncio.create_task(admission.acquire(some(4)))
        await turn()
        admission.release(some(1))
        late.cancel()
        await asyncio.gather(late, return_exceptions=True)
        assert admission.num_in_use == 1
        await admission.acquire(some(5))

    asyncio.run(run())


def test_too_many_waiting_and_too_many_features_are_refused() -> None:
    async def run() -> None:
        admission = Admission(1, 1)
        await admission.acquire(some(1))
        waiting = asyncio.create_task(admission.acquire(some(2)))
        await turn()
        with pytest.raises(BusyError) as raised:
            await admission.acquire(some(3))
        assert (raised.value.status, raised.value.retry_after_s) == (429, 1)
        with pytest.raises(InvalidSteeringError, match="uses 2 features; this server allows 1"):
            await admission.acquire(some(3, 4))
        admission.release(some(1))
        await waiting

    asyncio.run(run())
