"""A folder of vectors, as earlier versions kept them, is taken over by the database: once, and whole."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
import torch
from tests.support.vector_files import WIDTH, file, held, numbers

from saeclamp_server.database import Database
from saeclamp_server.errors import VectorsFullError
from saeclamp_server.vectors import MAX_BYTES, SteeringVector, VectorFolder, VectorStore, default_folder
from saeclamp_server.vectors.folder import TAKEN


def write(folder: Path, **files: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / f"{name}.safetensors").write_bytes(data)
    return folder


def start(database: Database, folder: Path) -> list[str]:
    """Do what a server does with both when it starts; the names that it has then."""

    async def whole() -> list[str]:
        vectors = held(database)
        await vectors.take_over(VectorFolder(folder))
        await vectors.refresh()
        return sorted(vectors)

    return asyncio.run(whole())


def files(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.safetensors"))


def test_files_become_rows_and_move_aside(database: Database, tmp_path: Path, said: list[str]) -> None:
    written = {"a": file(), "b": file(numbers(1), sign="-1")}
    folder = write(tmp_path / "old", **written)
    assert start(database, folder) == ["a", "b"]
    assert (files(folder), files(folder / TAKEN)) == ([], ["a", "b"])
    for name, data in written.items():
        assert (folder / TAKEN / f"{name}.safetensors").read_bytes() == data
        direction = VectorStore(database, "tiny").read(name)
        assert direction is not None
        assert direction.sha256 == SteeringVector.parse(data).sha256
    assert start(database, folder) == ["a", "b"]
    assert not said


def test_a_start_that_was_killed_between_the_row_and_the_move_goes_on_at_the_next(
    database: Database, tmp_path: Path, said: list[str]
) -> None:
    folder = write(tmp_path / "old", a=file(), b=file(numbers(1)))
    VectorStore(database, "tiny").create("a", SteeringVector.parse(file()), 2)
    assert start(database, folder) == ["a", "b"]
    assert (files(folder), files(folder / TAKEN)) == ([], ["a", "b"])
    assert not said


def test_a_deleted_vector_does_not_come_back(database: Database, tmp_path: Path) -> None:
    folder = write(tmp_path / "old", a=file(), b=file(numbers(1)))
    start(database, folder)
    assert VectorStore(database, "tiny").delete("a")
    assert start(database, folder) == ["b"]


def test_a_name_that_the_database_has_with_other_content_stays_and_is_reported(
    database: Database, tmp_path: Path, said: list[str]
) -> None:
    folder = write(tmp_path / "old", a=file(), b=file(numbers(1)))
    VectorStore(database, "tiny").create("a", SteeringVector.parse(file(numbers(2))), 2)
    for _ in range(2):
        assert start(database, folder) == ["a", "b"]
    kept = VectorStore(database, "tiny").read("a")
    assert kept is not None
    assert kept.numbers.tolist() == numbers(2).tolist()
    assert (files(folder), files(folder / TAKEN)) == (["a"], ["b"])
    assert len(said) == 2
    assert all("vector a is left out: Another vector is named 'a'" in line for line in said)


def test_two_servers_that_start_at_once_take_each_file_over_once(database: Database, tmp_path: Path) -> None:
    folder = write(tmp_path / "old", **{f"v{number}": file(numbers(number)) for number in range(2)})

    async def both() -> list[list[str]]:
        servers = [held(database) for _ in range(2)]
        await asyncio.gather(*(server.take_over(VectorFolder(folder)) for server in servers))
        await asyncio.gather(*(server.refresh() for server in servers))
        return [sorted(server) for server in servers]

    assert asyncio.run(both()) == [["v0", "v1"], ["v0", "v1"]]
    assert (files(folder), files(folder / TAKEN)) == ([], ["v0", "v1"])


def test_a_folder_that_cannot_be_written_is_taken_over_and_reported(
    database: Database, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(30, "Read-only file system")

    folder = write(tmp_path / "old", a=file())
    monkeypatch.setattr(Path, "mkdir", refuse)  # not by its mode: tests may run as root
    monkeypatch.setattr(Path, "replace", refuse)
    for _ in range(2):
        assert start(database, folder) == ["a"]
    assert files(folder) == ["a"]
    assert len(said) == 2
    assert all("its file cannot be moved away" in line and "Read-only file system" in line for line in said)


def test_files_that_cannot_be_used_are_reported_and_stay(database: Database, tmp_path: Path, said: list[str]) -> None:
    whole = file()
    folder = write(
        tmp_path / "old",
        **{
            "good": whole,
            "cut": whole[:-1],
            "elsewhere": file(layer="4"),
            "wide": file(torch.ones(WIDTH + 1)),
            "no name": whole,
            "large": b"\0" * (MAX_BYTES + 1),
        },
    )
    (folder / "folder.safetensors").mkdir()
    (folder / "notes.txt").write_text("x")
    os.mkfifo(folder / "pipe.safetensors")
    flipped = bytearray(SteeringVector.parse(file()).to_bytes())
    flipped[-3] ^= 1
    (folder / "flipped.safetensors").write_bytes(flipped)
    assert start(database, folder) == ["good"]
    left_out = {"cut", "elsewhere", "wide", "no", "large", "folder", "pipe", "flipped"}
    assert {line.split()[1] for line in said} == left_out
    assert {*files(folder)} == left_out - {"no"} | {"no name"}


def test_more_files_than_a_site_can_hold_are_reported_and_stay(
    database: Database, tmp_path: Path, said: list[str]
) -> None:
    folder = write(tmp_path / "old", **{f"{number}": file(numbers(number)) for number in range(3)})
    assert start(database, folder) == ["0", "1"]
    assert said == [f"vector 2 is left out: {VectorsFullError('resid_post 3', 2)}"]
    assert files(folder) == ["2"]


def test_no_folder_is_made(database: Database, tmp_path: Path) -> None:
    assert start(database, tmp_path / "nowhere") == []
    assert not (tmp_path / "nowhere").exists()


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
