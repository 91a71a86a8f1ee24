"""Vectors are held once, kept on the disk before they are acknowledged, and let go when nobody moves them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.vector_files import WIDTH, Engine, file, held, numbers

from saeclamp_saes.errors import UserError
from saeclamp_server.errors import InvalidVectorError, RequestError, UnknownVectorError, VectorsFullError
from saeclamp_server.model_info import ModelInfo
from saeclamp_server.steering import SteeringContext
from saeclamp_server.vectors import (
    MAX_BYTES,
    SteeringVector,
    VectorRegistry,
    default_folder,
    vector_sites,
)

OTHER = file(numbers(1))


def run(steps: Callable[[VectorRegistry, Engine], Any], folder: Path) -> Any:
    """Take what is in a folder, as a server does when it starts, and go on from there."""

    async def whole() -> Any:
        engine = Engine()
        vectors = held(folder, engine)
        await vectors.load()
        return await steps(vectors, engine)

    return asyncio.run(whole())


def test_an_uploaded_vector_is_a_row_of_its_sites_dictionary(tmp_path: Path) -> None:
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

    run(steps, tmp_path)


def test_the_same_content_is_accepted_again_and_other_content_never(tmp_path: Path) -> None:
    async def steps(vectors: VectorRegistry, engine: Engine) -> None:
        first, _ = await vectors.upload("sleepy", file())
        second, is_new = await vectors.upload("sleepy", first.direction.to_bytes())
        assert (second is first, is_new, len(engine.rows)) == (True, False, 1)
        for data in (OTHER, file(source="x"), file(site="resid_mid", layer="5")):
            with pytest.raises(RequestError) as raised:
                await vectors.upload("sleepy", data)
            assert (raised.value.status, raised.value.code, raised.value.param) == (400, "vector_exists", "name")

    run(steps, tmp_path)


@pytest.mark.parametrize(
    ("data", "param", "says"),
    [
        (file(layer="4"), "metadata.site", "vectors can sit at resid_post 3, resid_mid 5"),
        (file(layer="4"), "metadata.site", "--vector-site resid_post.4"),
        (file(torch.ones(WIDTH + 1)), "body", f"has {WIDTH + 1} numbers; at resid_post 3 this model has {WIDTH}"),
    ],
)
def test_a_vector_that_does_not_fit_is_refused(tmp_path: Path, data: bytes, param: str, says: str) -> None:
    async def steps(vectors: VectorRegistry, engine: Engine) -> None:
        with pytest.raises(InvalidVectorError) as raised:
            await vectors.upload("sleepy", data)
        assert raised.value.param == param
        assert says in raised.value.message
        assert (len(vectors), engine.rows, [*tmp_path.iterdir()]) == (0, {}, [])

    run(steps, tmp_path)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "ä", "x" * 65, "a\n", "../x", "a\0"])
def test_names_that_are_no_names_are_refused(tmp_path: Path, name: str) -> None:
    async def steps(vectors: VectorRegistry, engine: Engine) -> None:
        with pytest.raises(InvalidVectorError) as raised:
            await vectors.upload(name, file())
        assert raised.value.param == "name"

    run(steps, tmp_path)


def test_a_row_is_used_again_when_nobody_refers_to_its_vector(tmp_path: Path) -> None:
    async def steps(vectors: VectorRegistry, engine: Engine) -> None:
        running, _ = await vectors.upload("a", file())
        await vectors.upload("b", file(numbers(1)))
        with pytest.raises(VectorsFullError):
            await vectors.upload("c", file(numbers(2)))
        await vectors.upload("elsewhere", file(site="resid_mid", layer="5"))
        await vectors.delete("a")
        assert "a" not in vectors
        with pytest.raises(VectorsFullError, match="of requests that are still running among them"):
            await vectors.upload("c", file(numbers(2)))
        await vectors.delete("b")
        await vectors.upload("c", file(numbers(2)))
        assert engine.rows["vectors@resid_post 3", 0][:2] == ("vector:a", running.sha256)
        assert engine.rows["vectors@resid_post 3", 1][0] == "vector:c"
        del running
        await vectors.upload("d", file(numbers(3)))
        assert engine.rows["vectors@resid_post 3", 0][0] == "vector:d"

    run(steps, tmp_path)


def test_an_upload_waits_a_moment_for_requests_that_have_just_been_answered(tmp_path: Path) -> None:
    async def steps(vectors: VectorRegistry, engine: Engine) -> None:
        in_use = [(await vectors.upload("a", file()))[0]]
        await vectors.upload("b", OTHER)
        await vectors.delete("a")
        asyncio.get_running_loop().call_later(0.05, in_use.clear)
        await vectors.upload("c", file(numbers(2)))

    run(steps, tmp_path)


def test_what_is_uploaded_again_while_it_is_in_use_is_the_same(tmp_path: Path) -> None:
    """Or its second row might be given away while a request that was placed on it still runs."""

    async def steps(vectors: VectorRegistry, engine: Engine) -> None:
        running, _ = await vectors.upload("a", file())
        await vectors.delete("a")
        again, is_new = await vectors.upload("a", file())
        assert (again is running, is_new) == (True, True)
        assert (tmp_path / "a.safetensors").exists()
        await vectors.delete("a")
        other, _ = await vectors.upload("a", OTHER)
        assert other.sha256 != running.sha256
        assert {row: content[1] for row, content in engine.rows.items()} == {
            ("vectors@resid_post 3", 0): running.sha256,
            ("vectors@resid_post 3", 1): other.sha256,
        }

    run(steps, tmp_path)


def test_an_upload_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def steps(vectors: VectorRegistry, engine: Engine) -> None:
        engine.fails = True
        for _ in range(5):
            with pytest.raises(RuntimeError):
                await vectors.upload("a", file())
        engine.fails = False
        monkeypatch.setattr(os, "fsync", _full)
        for _ in range(5):
            with pytest.raises(RequestError, match="No space left") as raised:
                await vectors.upload("a", file())
            assert (raised.value.status, raised.value.code) == (500, "vector_not_kept")
        monkeypatch.undo()
        assert (len(vectors), [*tmp_path.iterdir()]) == (0, [])
        await vectors.upload("a", file())
        await vectors.upload("b", OTHER)

    run(steps, tmp_path)


def _full(_: int) -> None:
    raise OSError(28, "No space left on device")


def test_what_was_acknowledged_is_there_at_the_next_start(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "vectors"

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

    assert sorted(run(first, folder)) == sorted(run(second, folder))
    assert sorted(path.name for path in folder.iterdir()) == [".b-1.safetensors", "a.safetensors"]


def test_files_that_cannot_be_used_are_reported_and_left_out(tmp_path: Path, said: list[str]) -> None:
    whole = file()
    (tmp_path / "good.safetensors").write_bytes(whole)
    (tmp_path / "cut.safetensors").write_bytes(whole[:-1])
    (tmp_path / "elsewhere.safetensors").write_bytes(file(layer="4"))
    (tmp_path / "wide.safetensors").write_bytes(file(torch.ones(WIDTH + 1)))
    (tmp_path / "no name.safetensors").write_bytes(whole)
    (tmp_path / "large.safetensors").write_bytes(b"\0" * (MAX_BYTES + 1))
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    os.mkfifo(tmp_path / "pipe.safetensors")
    flipped = bytearray(SteeringVector.parse(file()).to_bytes())
    flipped[-3] ^= 1
    (tmp_path / "flipped.safetensors").write_bytes(flipped)

    async def steps(vectors: VectorRegistry, engine: Engine) -> None:
        assert [*vectors] == ["good"]
        with pytest.raises(RequestError, match="kept in") as raised:
            await vectors.upload("elsewhere", OTHER)
        assert raised.value.code == "vector_exists"
        del raised  # its traceback refers to the vector that was refused, and so does the task's last step
        await asyncio.sleep(0)
        await vectors.upload("cut", OTHER)

    run(steps, tmp_path)
    left_out = {line.split()[1] for line in said}
    assert left_out == {"cut", "elsewhere", "wide", "no", "large", "folder", "pipe", "flipped"}


def test_more_files_than_rows_are_reported(tmp_path: Path, said: list[str]) -> None:
    for number in range(3):
        (tmp_path / f"{number}.safetensors").write_bytes(file(numbers(number)))

    async def steps(vectors: VectorRegistry, engine: Engine) -> None:
        assert [*vectors] == ["0", "1"]

    run(steps, tmp_path)
    assert said == [f"vector 2 is left out: {VectorsFullError('resid_post 3', 2)}"]


def test_each_model_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAECLAMP_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("one/model", "two/model"):
        (tmp_path / name).mkdir(parents=True)
    folders = [
        default_folder(model) for model in ("one/model", str(tmp_path / "one" / "model"), "two/model", "org/model")
    ]
    assert folders[0] == folders[1]
    assert len({*folders}) == 3
    assert folders[3] == tmp_path / "vectors" / "org--model"
    assert not (tmp_path / "vectors").exists()


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
