"""The database that outlasts servers: its tables across versions, and what is said when it is gone."""

from __future__ import annotations

import asyncio
import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.databases import emptied, migrate_down, pgbouncer
from tests.support.variants import BRIDGE, FOOD, create, run, served
from tests.support.vector_files import file, held

from saeclamp_server.api.state import AppState
from saeclamp_server.database import Database, DatabaseError
from saeclamp_server.variants import VariantRegistry, VariantStore


def test_a_database_from_before_vectors_keeps_its_variants(url: str) -> None:
    before = Database(url)
    variants = VariantRegistry(VariantStore(before), served(), ["tiny"])
    create(variants, "chef", BRIDGE, description="Cooks.")
    create(variants, "chef", FOOD, alias="cook")
    known, versions = run(variants.listed()), VariantStore(before).all_versions()
    before.close()
    migrate_down(url, "0002")
    after = Database(url)
    assert run(VariantRegistry(VariantStore(after), served(), ["tiny"]).listed()) == known
    assert VariantStore(after).all_versions() == versions
    vectors = held(after)
    asyncio.run(vectors.upload("a", file()))
    assert [*vectors] == ["a"]
    after.close()


def test_a_host_that_never_answers_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun = time.monotonic()
        with pytest.raises(DatabaseError, match="The database of variants and vectors cannot be used: "):
            Database(f"postgresql+psycopg://someone@127.0.0.1:{silent.getsockname()[1]}/database")
    assert time.monotonic() - begun < 15


@pytest.mark.skipif(shutil.which("pgbouncer") is None, reason="needs PgBouncer: apt-get install pgbouncer")
def test_many_servers_share_few_connections_through_a_pooler(
    postgres: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("pgbouncer")
    with pgbouncer(emptied(postgres), folder, connections=3) as url:
        stores = [VariantStore(Database(url)) for _ in range(8)]

        def make(number: int) -> None:
            create(VariantRegistry(stores[number % 8], served(), ["tiny"]), f"chef-{number}", BRIDGE)

        with ThreadPoolExecutor(16) as pool:
            assert [*pool.map(make, range(80))] == [None] * 80
        for store in stores:
            assert {one.name for one in store.all_versions()} == {f"chef-{number}" for number in range(80)}


def test_whether_the_database_answers_is_found_out(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    state: Any = SimpleNamespace(database=database)
    assert asyncio.run(AppState.is_database_up(state))

    def gone() -> None:
        raise DatabaseError("It is gone.")

    monkeypatch.setattr(database, "check", gone)
    assert not asyncio.run(AppState.is_database_up(state))
