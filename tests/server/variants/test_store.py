"""What a database keeps, with several processes, kills and versions of its own."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from tests.support.variants import version

from saeclamp_server.database import Database, DatabaseError, default_url
from saeclamp_server.variants import VariantStore


def _create_some(url: str, process: int) -> None:
    database = Database(url)  # all of them bring the tables up to date at once
    store = VariantStore(database)
    for number in range(20):
        store.create(version(f"own-{process}", number))
        store.create(version("shared", 100 * process + number))


def test_several_processes_create_at_once_and_see_each_others(url: str) -> None:
    # forked, because each would import torch for seconds
    processes = [multiprocessing.get_context("fork").Process(target=_create_some, args=(url, n)) for n in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    database = Database(url)
    store = VariantStore(database)
    found = store.all_versions()
    assert len({one.sha256 for one in found if one.name.startswith("own-")}) == 60
    assert len({one.sha256 for one in found if one.name == "shared"}) == 60
    for process in range(3):
        assert store.find("tiny", f"own-{process}") == store.find(
            "tiny", f"own-{process}", version(f"own-{process}", 19).sha256
        )
    database.close()


def _create_on_and_on(url: str, number: int, acknowledged: int) -> None:
    database = Database(url)
    store = VariantStore(database)
    while True:
        store.create(version("crash", number))
        os.write(acknowledged, f"{number}\n".encode())
        number += 1


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    url, acknowledged, start = f"sqlite:///{tmp_path}/variants.sqlite3", set[int](), 0
    chance = random.Random(0)
    for _ in range(50):
        read_end, write_end = os.pipe()
        writer = multiprocessing.get_context("fork").Process(target=_create_on_and_on, args=(url, start, write_end))
        writer.start()
        os.close(write_end)
        with os.fdopen(read_end) as told:
            first = told.readline()  # it has begun
            time.sleep(chance.uniform(0, 0.05))
            writer.kill()
            acknowledged |= {int(line) for line in [first, *told.readlines()] if line}
        writer.join()
        start = max(acknowledged) + 1
    assert len(acknowledged) > 100
    database = Database(url)
    store = VariantStore(database)
    kept = {one.sha256 for one in store.all_versions()}
    assert {version("crash", number).sha256 for number in acknowledged} <= kept
    last = store.find("tiny", "crash")
    assert last is not None
    # the last one may have been kept and not acknowledged
    assert last.sha256 in (version("crash", start - 1).sha256, version("crash", start).sha256)
    database.close()


def test_a_database_of_a_newer_version_is_not_touched(url: str) -> None:
    Database(url).close()
    with create_engine(url).begin() as connection:
        connection.execute(text("UPDATE saeclamp_variant_schema SET version_num = '9999'"))
    with pytest.raises(DatabaseError, match="newer version"):
        Database(url)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("mysql://host/database", "SQLite or PostgreSQL"),
        ("nonsense", "no database's URL"),
        ("sqlite:////proc/nowhere/variants.sqlite3", "cannot be made"),
    ],
)
def test_what_is_no_database_is_said_in_a_sentence(address: str, says: str) -> None:
    with pytest.raises(DatabaseError, match=says):
        Database(address)


def test_a_file_that_is_no_database_is_said_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "variants.sqlite3").write_text("not a database at all, but long enough to be read as one " * 40)
    with pytest.raises(DatabaseError, match="not a database"):
        Database(f"sqlite:///{tmp_path}/variants.sqlite3")


def test_variants_are_kept_among_the_users_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_url() == "sqlite:////data/saeclamp/variants.sqlite3"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_url() == "sqlite:////home/someone/.local/share/saeclamp/variants.sqlite3"
