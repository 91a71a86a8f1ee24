"""Two servers of one model have the same vectors at every moment, because both ask one database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import text
from tests.support.vector_files import Engine, file, held, numbers

from saeclamp import Add, FeatureCondition, Rule, Steering
from saeclamp_server.database import Database
from saeclamp_server.errors import (
    RequestError,
    UnknownVectorError,
    VectorExistsError,
    VectorsBusyError,
    VectorsUnavailableError,
)
from saeclamp_server.steering import vectors_used
from saeclamp_server.vectors import VectorRegistry, VectorStore

Steps = Callable[[VectorRegistry, VectorRegistry], Any]


@pytest.fixture
def run(url: str) -> Iterator[Callable[[Steps], None]]:
    """Runs steps with the registries of two servers, each with connections of its own."""
    databases = [Database(url), Database(url)]
    yield lambda steps: asyncio.run(steps(*map(held, databases)))
    for database in databases:
        database.close()


async def at_once(*uploads: Any) -> list[bool | str]:
    """Run both, and tell of each whether it was new, or the code of its refusal; nothing refers to vectors after that."""
    found = await asyncio.gather(*uploads, return_exceptions=True)
    told: list[bool | str] = []
    for one in found:
        if isinstance(one, RequestError):
            assert one.code is not None
            told.append(one.code)
            one.__traceback__ = None
        elif isinstance(one, BaseException):
            raise one
        else:
            told.append(one[1])
    return told


def test_of_two_that_upload_one_name_at_once_exactly_one_is_new(run: Callable[[Steps], None]) -> None:
    async def steps(one: VectorRegistry, other: VectorRegistry) -> None:
        outcomes = set()
        for number in range(100):
            second = number if number % 2 else number + 1000
            told = await at_once(one.upload("a", file(numbers(number))), other.upload("a", file(numbers(second))))
            assert sorted(map(str, told)) == (["False", "True"] if number % 2 else ["True", "vector_exists"])
            outcomes.add(told.index(True))
            await asyncio.gather(one.refresh(["a"]), other.refresh(["a"]))
            assert one["a"].sha256 == other["a"].sha256
            await one.delete("a")
        assert outcomes <= {0, 1}

    run(steps)


def test_the_last_place_of_a_site_goes_to_one_of_two(run: Callable[[Steps], None]) -> None:
    async def steps(one: VectorRegistry, other: VectorRegistry) -> None:
        await one.upload("first", file())
        for number in range(6):
            told = await at_once(one.upload("a", file(numbers(number))), other.upload("b", file(numbers(-number - 1))))
            assert sorted(map(str, told)) == ["True", "vectors_full"]
            await one.refresh()
            assert len(one) == 2
            await other.delete("a" if "a" in one else "b")
            await one.refresh()

    run(steps)


def test_what_one_was_given_the_other_has_at_once(run: Callable[[Steps], None]) -> None:
    async def steps(one: VectorRegistry, other: VectorRegistry) -> None:
        vector, _ = await one.upload("a", file(sign="-1"))
        await other.refresh({"a"})
        assert other["a"].to_wire() == vector.to_wire()
        assert other["a"].direction.signed().tolist() == vector.direction.signed().tolist()
        known, is_new = await other.upload("a", vector.direction.to_bytes())
        assert (known.sha256, is_new) == (vector.sha256, False)
        with pytest.raises(VectorExistsError):
            await other.upload("a", file(numbers(1)))
        await other.upload("b", file(numbers(1), site="resid_mid", layer="5"))
        for server in (one, other):
            await server.refresh()
            assert sorted(server) == ["a", "b"]

    run(steps)


def test_what_one_deletes_the_other_refuses_at_once_and_its_running_requests_keep(run: Callable[[Steps], None]) -> None:
    async def steps(one: VectorRegistry, other: VectorRegistry) -> None:
        await one.upload("a", file())
        await other.refresh({"a"})
        running, engine = other["a"], other._engine
        assert isinstance(engine, Engine)
        await one.delete("a")
        await other.refresh({"a"})
        assert "a" not in other
        with pytest.raises(UnknownVectorError) as raised:
            await other.delete("a")
        assert raised.value.status == 404
        # its name may mean something else by now, in another row
        await one.upload("a", file(numbers(1)))
        await other.refresh({"a"})
        assert other["a"].sha256 != running.sha256
        assert {content[1] for content in engine.rows.values()} == {other["a"].sha256, running.sha256}
        await one.upload("b", file(numbers(2)))
        with pytest.raises(VectorsBusyError, match="still being written"):
            await other.refresh({"b"})
        del running
        await other.refresh({"b"})
        assert sorted(other) == ["a", "b"]

    run(steps)


def test_only_requests_that_name_vectors_need_the_database(run: Callable[[Steps], None], url: str) -> None:
    async def steps(one: VectorRegistry, other: VectorRegistry) -> None:
        await one.upload("a", file())
        gone = Database(url)
        with gone.transaction(writes=True) as connection:
            connection.execute(text("DROP TABLE saeclamp_vectors"))
        gone.close()
        await one.refresh(set())
        for asked in (one.refresh({"a"}), one.refresh(), other.delete("a"), other.upload("b", file())):
            with pytest.raises(VectorsUnavailableError) as raised:
                await asked
            assert (raised.value.status, raised.value.code) == (503, "vectors_unavailable")
            assert raised.value.message.startswith("The database of variants and vectors cannot be used; ")

    run(steps)


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "", "ä" * 1000])
def test_what_is_no_name_is_not_asked_for(run: Callable[[Steps], None], name: str) -> None:
    async def steps(one: VectorRegistry, other: VectorRegistry) -> None:
        await one.upload("a", file())
        with pytest.raises(UnknownVectorError, match="Uploaded: a"):
            await other.delete(name)

    run(steps)


def test_vectors_of_rules_are_among_those_that_are_looked_up() -> None:
    when = FeatureCondition(feature="big/4", above=1)
    rule = Rule(name="r", when=when, then=(Add(vector="b", value=1, unit="act"),))
    moves = (Add(vector="a", value=1, unit="act"), Add(feature="big/4", value=1))
    assert vectors_used(Steering(interventions=moves, rules=(rule,))) == {"a", "b"}
    assert vectors_used(Steering(interventions=moves[1:])) == set()
    assert vectors_used(None) == set()


def test_names_of_two_models_are_apart(database: Database) -> None:
    async def steps() -> None:
        server = held(database)
        await server.upload("a", file())
        assert VectorStore(database, "other").hashes() == {}
        assert not VectorStore(database, "other").delete("a")
        await server.refresh({"a"})
        assert "a" in server

    asyncio.run(steps())


def test_while_one_waits_for_a_row_the_others_that_need_none_do_not(run: Callable[[Steps], None]) -> None:
    async def steps(one: VectorRegistry, other: VectorRegistry) -> None:
        for name in "ab":
            await one.upload(name, file(numbers(ord(name))))
        await other.refresh({"a", "b"})
        running = [other["a"], other["b"]]
        await one.delete("a")
        await one.delete("b")
        await one.upload("mine", file(numbers(5)))
        waiting = asyncio.create_task(other.refresh({"mine"}))
        await asyncio.sleep(0.05)
        begun = time.monotonic()
        with pytest.raises(UnknownVectorError):
            await other.delete("nobody")
        assert time.monotonic() - begun < 0.3
        with pytest.raises(VectorsBusyError):
            await waiting
        del running
        await other.refresh({"mine"})
        assert "mine" in other

    run(steps)
