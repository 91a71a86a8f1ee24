"""Vectors are held once, kept in the database before they are acknowledged, and let go when nobody moves them."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.vector_files import WIDTH, Engine, file, held, numbers

from saeclamp_saes.errors import UserError
from saeclamp_server.database import Database, DatabaseError, tables
from saeclamp_server.errors import (
    InvalidVectorError,
    RequestError,
    UnknownVectorError,
    VectorsBusyError,
    VectorsFullError,
)
from saeclamp_server.model_info import ModelInfo
from saeclamp_server.steering import SteeringContext
from saeclamp_server.vectors import SteeringVector, VectorRegistry, VectorStore, vector_sites

OTHER = file(numbers(1))


def run(steps: Callable[[VectorRegistry, Engine], Any], database: Database) -> Any:
    """Load what a database has, as a server does when it starts, and go on from there."""

    async def whole() -> Any:
        engine = Engine()
        vectors = held(database, engine)
        await vectors.refresh()
        return await steps(vectors, engine)

    return asyncio.run(whole())


def kept(database: Database) -> set[str]:
    return {*VectorStore(database, "tiny").hashes()}


def test_an_uploaded_vector_is_a_row_of_its_sites_dictionary(database: Database) -> None:
    async def steps(vectors: VectorRegistry, engine: Engine) -> None:
        vector, is_new = await vectors.upload("sleepy", file(sign="-1"))
        assert is_new
        assert engine.rows == {
            ("vectors@resid_post 3", 0): ("vector:sleepy", vector.sha256, pytest.approx((-numbers()).tolist()))
        }
        described = vector.to_wire()
        assert (described.name, described.site, described.layer, described.sign) == ("sleepy", "resid_post 3", 3, -1)
        assert described.resid_norm == pytest.approx(float(numbers().norm()) / 50)
        unmeasured, _ = await vectors.upload("mid", file(site="resid_mid", layer="5"))
        assert unmeasured.to_wire().resid_norm is None

    run(steps, database)


def test_the_same_content_is_accepted_again_and_other_content_never(database: Database) -> None:
    async def steps(vectors: VectorRegistry, engine: Engine) -> None:
        first, _ = await vectors.upload("sleepy", file())
        second, is_new = await vectors.upload("sleepy", first.direction.to_bytes())
        assert (second is first, is_new, len(engine.rows)) == (True, False, 1)
        for data in (OTHER, file(source="x"), file(site="resid_mid", layer="5")):
            with pytest.raises(RequestError) as raised:
                await vectors.upload("sleepy", data)
            assert (raised.value.status, raised.value.code, raised.value.param) == (400, "vector_exists", "name")

    run(steps, database)


@pytest.mark.parametrize(
    ("data", "param", "says"),
    [
        (file(layer="4"), "metadata.site", "vectors can sit at resid_post 3, resid_mid 5"),
        (file(layer="4"), "metadata.site", "--vector-site resid_post.4"),
        (file(torch.ones(WIDTH + 1)), "body", f"has {WIDTH + 1} numbers; at resid_post 3 this model has {WIDTH}"),
    ],
)
def test_a_vector_that_does_not_fit_is_refused(database: Database, data: bytes, param: str, says: str) -> None:
    async def steps(vectors: VectorRegistry, engine: Engine) -> None:
        with pytest.raises(InvalidVectorError) as raised:
            await vectors.upload("sleepy", data)
        assert raised.value.param == param
        assert says in raised.value.message
        assert (len(vectors), engine.rows, kept(database)) == (0, {}, set())

    run(steps, database)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "ä", "x" * 65, "a\n", "../x", "a\0"])
def test_names_that_are_no_names_are_refused(database: Database, name: str) -> None:
    async def steps(vectors: VectorRegistry, engine: Engine) -> None:
        with pytest.raises(InvalidVectorError) as raised:
            await vectors.upload(name, file())
        assert raised.value.param == "name"

    run(steps, database)


def test_a_row_is_used_again_when_nobody_refers_to_its_vector(database: Database) -> None:
    async def steps(vectors: VectorRegistry, engine: Engine) -> None:
        running, _ = await vectors.upload("a", file())
        await vectors.upload("b", file(numbers(1)))
        with pytest.raises(VectorsFullError):
            await vectors.upload("c", file(numbers(2)))
        await vectors.upload("elsewhere", file(site="resid_mid", layer="5"))
        await vectors.delete("a")
        assert "a" not in vectors
        with pytest.raises(VectorsBusyError, match="answers that are still being written"):
            await vectors.upload("c", file(numbers(2)))
        await vectors.delete("b")
        await vectors.upload("c", file(numbers(2)))
        assert engine.rows["vectors@resid_post 3", 0][:2] == ("vector:a", running.sha256)
        assert engine.rows["vectors@resid_post 3", 1][0] == "vector:c"
        del running
        await vectors.upload("d", file(numbers(3)))
        assert engine.rows["vectors@resid_post 3", 0][0] == "vector:d"

    run(steps, database)


def test_an_upload_waits_a_moment_for_requests_that_have_just_been_answered(database: Database) -> None:
    async def steps(vectors: VectorRegistry, engine: Engine) -> None:
        in_use = [(await vectors.upload("a", file()))[0]]
        await vectors.upload("b", OTHER)
        await vectors.delete("a")
        asyncio.get_running_loop().call_later(0.05, in_use.clear)
        await vectors.upload("c", file(numbers(2)))

    run(steps, database)


def test_what_is_uploaded_again_while_it_is_in_use_is_the_same(database: Database) -> None:
    """Or its second row might be given away while a request that was placed on it still runs."""

    async def steps(vectors: VectorRegistry, engine: Engine) -> None:
        running, _ = await vectors.upload("a", file())
        await vectors.delete("a")
        again, is_new = await vectors.upload("a", file())
        assert (again is running, is_new) == (True, True)
        assert kept(database) == {"a"}
        await vectors.delete("a")
        other, _ = await vectors.upload("a", OTHER)
        assert other.sha256 != running.sha256
        assert {row: content[1] for row, content in engine.rows.items()} == {
            ("vectors@resid_post 3", 0): running.sha256,
            ("vectors@resid_post 3", 1): other.sha256,
        }

    run(steps, database)


def test_an_upload_that_fails_leaves_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    async def steps(vectors: VectorRegistry, engine: Engine) -> None:
        engine.fails = True
        for _ in range(5):
            with pytest.raises(RuntimeError):
                await vectors.upload("a", file())
        engine.fails = False
        monkeypatch.setattr(VectorStore, "create", _full)
        for _ in range(5):
            with pytest.raises(RequestError, match="could not be kept") as raised:
                await vectors.upload("a", file())
            assert (raised.value.status, raised.value.code) == (503, "vector_not_kept")
        monkeypatch.undo()
        # the reason is for whoever runs the server
        assert said == ["No space left on device."] * 5
        assert (len(vectors), kept(database)) == (0, set())
        await vectors.upload("a", file())
        await vectors.upload("b", OTHER)

    run(steps, database)


def _full(*_: Any) -> None:
    raise DatabaseError("No space left on device.")


def test_an_upload_whose_client_goes_meanwhile_is_whole_or_not_there(database: Database) -> None:
    async def steps(vectors: VectorRegistry, engine: Engine) -> None:
        for number in range(15):
            upload = asyncio.create_task(vectors.upload("a", file(numbers(number))))
            await asyncio.sleep(0.001 * number)
            upload.cancel()
            with suppress(asyncio.CancelledError):
                await upload
            del upload  # its result is the vector
            await asyncio.sleep(0.3)  # what has begun in the database ends there
            await vectors.refresh()
            assert {*vectors} == kept(database)
            if "a" in vectors:
                await vectors.delete("a")
        await vectors.upload("b", OTHER)
        await vectors.upload("c", file())

    run(steps, database)


def test_what_was_acknowledged_is_there_at_the_next_start(database: Database) -> None:
    async def first(vectors: VectorRegistry, engine: Engine) -> list[str]:
        await vectors.upload("a", file())
        await vectors.upload(".b-1", file(site="resid_mid", layer="5", sign="-1"))
        await vectors.upload("c", OTHER)
        await vectors.delete("c")
        with pytest.raises(UnknownVectorError) as raised:
            await vectors.delete("c")
        assert raised.value.status == 404
        return [vector.to_wire().model_dump_json() for vector in vectors.values()]

    async def second(vectors: VectorRegistry, engine: Engine) -> list[str]:
        assert len(engine.rows) == 2
        return [vector.to_wire().model_dump_json() for vector in vectors.values()]

    assert sorted(run(first, database)) == sorted(run(second, database))
    assert kept(database) == {".b-1", "a"}


def _create_on_and_on(url: str, start: int, acknowledged: int) -> None:
    store = VectorStore(Database(url), "tiny")
    for number in itertools.count(start):
        store.create(f"{number}", SteeringVector.parse(file(numbers(number))), 1_000_000)
        os.write(acknowledged, f"{number}\n".encode())


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    url, acknowledged = f"sqlite:///{tmp_path}/variants.sqlite3", set[int]()
    chance = random.Random(0)
    for round_ in range(20):
        read_end, write_end = os.pipe()
        arguments = (url, 1000 * round_, write_end)
        writer = multiprocessing.get_context("fork").Process(target=_create_on_and_on, args=arguments)
        writer.start()
        os.close(write_end)
        with os.fdopen(read_end) as told:
            first = told.readline()  # it has begun
            time.sleep(chance.uniform(0, 0.05))
            writer.kill()
            acknowledged |= {int(line) for line in [first, *told.readlines()] if line}
        writer.join()
    assert len(acknowledged) > 40
    database = Database(url)
    assert {f"{number}" for number in acknowledged} <= kept(database)
    for name in kept(database):
        direction = VectorStore(database, "tiny").read(name)
        assert direction is not None
        assert direction.numbers.tolist() == numbers(int(name)).tolist()
    database.close()


def damage(database: Database, name: str, file: bytes) -> None:
    with database.transaction(writes=True) as connection:
        connection.execute(tables.vectors.update().where(tables.vectors.c.name == name).values(file=file))


def test_vectors_that_cannot_be_used_here_are_reported_once_and_left_out(database: Database, said: list[str]) -> None:
    store, whole = VectorStore(database, "tiny"), file()
    store.create("good", SteeringVector.parse(whole), 2)
    store.create("elsewhere", SteeringVector.parse(file(layer="4")), 2)
    store.create("wide", SteeringVector.parse(file(torch.ones(WIDTH + 1))), 2 + 1)
    store.create("cut", SteeringVector.parse(file(site="resid_mid", layer="5")), 2)
    damage(database, "cut", whole[:-1])
    VectorStore(database, "another-model").create("theirs", SteeringVector.parse(whole), 2)

    async def steps(vectors: VectorRegistry, engine: Engine) -> None:
        for names in (None, ["elsewhere"], ["good", "wide"], ["nobody"]):
            await vectors.refresh(names)
            assert [*vectors] == ["good"]
        with pytest.raises(RequestError) as raised:
            await vectors.upload("elsewhere", file(numbers(1), site="resid_mid", layer="5"))
        assert raised.value.code == "vector_exists"
        for name in ("elsewhere", "wide", "cut"):
            await vectors.delete(name)  # which is what the refusal says
        await vectors.upload("elsewhere", file(numbers(1), site="resid_mid", layer="5"))

    run(steps, database)
    assert sorted(line.split()[1] for line in said) == ["cut", "elsewhere", "wide"]


def test_more_vectors_than_rows_are_reported_once(database: Database, said: list[str]) -> None:
    for number in range(3):
        VectorStore(database, "tiny").create(f"{number}", SteeringVector.parse(file(numbers(number))), 3)

    async def steps(vectors: VectorRegistry, engine: Engine) -> None:
        assert [*vectors] == ["0", "1"]
        await vectors.refresh()
        with pytest.raises(VectorsFullError):  # rather than that there is no such vector
            await vectors.refresh(["2"])
        await vectors.delete("0")
        await vectors.refresh(["2"])
        assert [*vectors] == ["1", "2"]

    run(steps, database)
    assert said == [f"vector 2 is left out: {VectorsFullError('resid_post 3', 2)}"]


MODEL = ModelInfo("m", "LlamaForCausalLM", 8, 4, 16, False)


def test_places_are_those_of_saes_and_those_that_are_asked_for(served: SteeringContext) -> None:
    model = replace(MODEL, num_layers=9)
    saes = {name: sae.entry for name, sae in served.saes.items()}
    places = vector_sites(["attn_z.2", "resid_pre.4", "resid_post 8"], 3, saes, model)
    assert [(str(place.site), place.width, place.capacity) for place in places] == [
        ("attn_z 2", 16, 3),
        ("resid_post 3", 8, 3),
        ("resid_post 8", 8, 3),
    ]
    everywhere = vector_sites(["all"], 1, {}, MODEL)
    assert [str(place.site) for place in everywhere] == [f"resid_post {layer}" for layer in range(4)]
    assert vector_sites(["all"], 0, saes, MODEL) == ()


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("resid_post.4", "has layers 0 to 3"),
        ("resid", "is not a site such as"),
        ("mlp_in_no_gain.1", "can be steered at embed, resid_pre"),
    ],
)
def test_a_site_that_is_not_there_ends_the_start(asked: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        vector_sites([asked], 1, {}, MODEL)
