"""The database that outlasts servers: its tables across versions, and what is said when it is gone."""

from __future__ import annotations

import asyncio
import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from sqlalchemy import make_url, text
from tests.support.databases import emptied, migrate_down, pgbouncer
from tests.support.serving import wait_until
from tests.support.variants import BRIDGE, FOOD, create, run, served
from tests.support.vector_files import file, held

from saeclamp_server.database import Alone, Database, DatabaseError, connection
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


def test_a_database_that_is_frozen_is_given_up_and_used_again_when_it_goes_on(
    postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_url(emptied(postgres)).query["host"]
    database = Database(f"{postgres}&connect_timeout=2", answer_s=1)
    store = VariantStore(database)
    create(VariantRegistry(store, served(), ["tiny"]), "chef", BRIDGE)
    processes = [one for one in psutil.process_iter(["cmdline"]) if folder in (one.info["cmdline"] or [])]
    (first,) = processes
    frozen = [first, *first.children()]
    for process in frozen:
        process.suspend()
    try:
        begun = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(store.find, "tiny", "chef") for _ in range(8)]
            for one in asked:
                with pytest.raises(DatabaseError, match="cannot be used"):
                    one.result()
        assert time.monotonic() - begun < 12
    finally:
        for process in frozen:
            process.resume()
    assert wait_until(lambda: _finds(store), 10)
    for _ in range(20):
        assert _finds(store)
    database.close()


def _finds(store: VariantStore) -> bool:
    try:
        return store.find("tiny", "chef") is not None
    except DatabaseError:
        return False


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_a_url_without_a_driver_has_ours(postgres: str, scheme: str) -> None:
    database = Database(postgres.replace("postgresql+psycopg", scheme, 1))
    assert database.is_shared
    database.check()
    database.close()


def test_a_server_that_is_frozen_while_it_holds_a_lock_holds_up_nobody_for_long(
    postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "IDLE_S", 1)
    frozen, other = Database(emptied(postgres)), Database(postgres)

    def hold() -> None:
        with frozen.transaction(writes=True, alone=Alone.VECTORS) as own:
            begun = time.monotonic()
            asyncio.run(held(other).upload("a", file()))
            assert time.monotonic() - begun < 4
            own.execute(text("SELECT 1"))  # it goes on, and is told that its transaction is over

    with pytest.raises(DatabaseError):
        hold()
    frozen.check()
    frozen.close()
    other.close()


def test_while_it_is_known_to_be_away_nobody_waits_to_be_told(postgres: str) -> None:
    database = Database(emptied(postgres))
    database.is_away = True
    with pytest.raises(DatabaseError, match="does not answer"):
        VariantStore(database).find("tiny", "chef")
    database.check()  # who looks whether it is back must be let through
    database.is_away = False
    assert VariantStore(database).find("tiny", "chef") is None
    database.close()
