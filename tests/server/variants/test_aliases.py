"""Aliases: names without a colon that mean what the name means."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.support.databases import emptied, migrate_down
from tests.support.variants import BRIDGE, FOOD, create, run, served

from saeclamp import InvalidArgumentError
from saeclamp.types import NewVariant, Steering, VariantExport
from saeclamp_server.database import Database
from saeclamp_server.errors import RequestError
from saeclamp_server.variants import VariantRegistry, VariantStore


def named(
    variants: VariantRegistry, name: str, alias: str | None, steering: Steering = BRIDGE, base: str = "tiny"
) -> Any:
    return run(variants.create(NewVariant(name=name, base=base, steering=steering, alias=alias)))[0]


def test_an_alias_is_a_name_without_a_colon_that_means_what_the_name_means(variants: VariantRegistry) -> None:
    made = named(variants, "chef", "cook")
    assert (made.id, made.alias) == ("tiny:chef", "cook")
    assert run(variants.of_model("cook")) == run(variants.of_model("tiny:chef"))
    again = named(variants, "chef", None, FOOD)
    assert again.alias == "cook"
    assert run(variants.of_model("cook")).parsed == FOOD
    assert run(variants.described("cook")).version == again.version
    assert {one.id: one.alias for one in run(variants.listed()) if not one.read_only} == {"tiny:chef": "cook"}


def test_another_alias_takes_the_place_of_the_first_and_a_deleted_variant_has_none(variants: VariantRegistry) -> None:
    named(variants, "chef", "cook")
    named(variants, "chef", "chef")
    assert run(variants.of_model("cook")) is None
    assert run(variants.of_model("chef")) is not None
    run(variants.delete("chef"))
    assert run(variants.of_model("chef")) is None
    named(variants, "other", "chef")
    assert run(variants.of_model("chef")).name == "other"


@pytest.mark.parametrize(
    ("name", "alias", "says", "param"),
    [
        pytest.param("other", "cook", "another variant's alias", "alias", id="an-alias"),
        pytest.param("other", "tiny-too", "a model's name", "alias", id="a-model"),
        pytest.param("other", "adapter", "a model's name", "alias", id="an-adapter"),
        pytest.param("other", "chef", "the name of tiny:chef", "alias", id="a-variants-name"),
        pytest.param("other", "bridge", "the name of tiny:bridge", "alias", id="a-presets-name"),
        pytest.param("cook", None, "the alias of tiny:chef", "name", id="a-name-that-is-an-alias"),
        pytest.param("other", "export", "no variant can be named", "alias", id="an-endpoint"),
    ],
)
def test_an_alias_that_already_means_something_is_refused(
    url: str, name: str, alias: str | None, says: str, param: str
) -> None:
    database = Database(url)
    store = VariantStore(database)
    variants = VariantRegistry(store, served(), ["tiny", "tiny-too"], lambda: ["adapter"])
    named(variants, "chef", "cook")
    with pytest.raises(RequestError, match=says) as refused:
        named(variants, name, alias, FOOD)
    assert refused.value.param == param
    assert [one.id for one in run(variants.listed()) if not one.read_only] == ["tiny:chef"]
    database.close()


@pytest.mark.parametrize("alias", ["tiny:chef", "chef@1", "a/b", "", ".a", "a" * 65])
def test_an_alias_has_neither_colon_nor_at(alias: str) -> None:
    with pytest.raises(InvalidArgumentError, match="alias: a name is 1 to 64 letters"):
        NewVariant(name="chef", steering=BRIDGE, alias=alias)


def test_an_alias_of_a_model_that_is_not_served_here_means_nothing(url: str) -> None:
    database = Database(url)
    store = VariantStore(database)
    named(VariantRegistry(store, served(), ["tiny"]), "chef", "cook")
    assert run(VariantRegistry(store, served(), ["another"]).of_model("cook")) is None
    database.close()


def test_aliases_are_exported_and_taken_in_or_refused_with_the_whole(variants: VariantRegistry, tmp_path: Path) -> None:
    named(variants, "chef", "cook")
    named(variants, "plain", None, FOOD)
    export = VariantExport.model_validate_json(json.dumps(run(variants.exported())))
    elsewhere = VariantRegistry(VariantStore(Database(f"sqlite:///{tmp_path}/other.sqlite3")), served(), ["tiny"])
    assert run(elsewhere.import_(export)) == (2, 0)
    assert run(elsewhere.of_model("cook")).name == "chef"
    taken = VariantRegistry(VariantStore(Database(f"sqlite:///{tmp_path}/third.sqlite3")), served(), ["tiny"])
    named(taken, "baker", "cook")
    with pytest.raises(RequestError, match="another variant's alias"):
        run(taken.import_(export))
    assert [one.name for one in run(taken.listed()) if not one.read_only] == ["baker"]


def test_a_database_without_aliases_is_brought_up_to_date(url: str) -> None:
    database = Database(url)
    store = VariantStore(database)
    create(VariantRegistry(store, served(), ["tiny"]), "chef", BRIDGE)
    database.close()
    migrate_down(url, "0001")
    database = Database(url)
    store = VariantStore(database)
    variants = VariantRegistry(store, served(), ["tiny"])
    assert run(variants.of_model("tiny:chef")).parsed == BRIDGE
    named(variants, "chef", "cook")
    assert run(variants.of_model("cook")).parsed == BRIDGE
    database.close()


def test_a_name_and_an_alias_that_come_at_once_do_not_both_stay(postgres: str) -> None:
    emptied(postgres)
    opened = [Database(postgres) for _ in range(2)]
    servers = [VariantRegistry(VariantStore(database), served(), ["tiny"]) for database in opened]

    def make(server: VariantRegistry, name: str, alias: str | None) -> str:
        try:
            named(server, name, alias)
        except RequestError as exc:
            return exc.code
        return "made"

    with ThreadPoolExecutor(2) as pool:
        for number in range(25):
            one = pool.submit(make, servers[0], f"foo-{number}", None)
            other = pool.submit(make, servers[1], f"bar-{number}", f"foo-{number}")
            assert sorted((one.result(), other.result())) == ["alias_taken", "made"]
    # so a copy of all can be read again
    exported = run(servers[0].exported())
    emptied(postgres)
    for database in opened:
        database.close()
    fresh = Database(postgres)
    registry = VariantRegistry(VariantStore(fresh), served(), ["tiny"])
    assert run(registry.import_(VariantExport.model_validate({"data": exported["data"]}))) == (25, 0)
    fresh.close()


def test_creating_and_deleting_one_name_at_once_is_no_fault_of_the_database(postgres: str) -> None:
    emptied(postgres)
    opened = [Database(postgres) for _ in range(4)]
    servers = [VariantRegistry(VariantStore(database), served(), ["tiny"]) for database in opened]

    def go(number: int) -> str:
        server, steering = servers[number % 4], (BRIDGE, FOOD)[number % 3 == 0]
        try:
            if number % 2:
                run(server.delete("chef"))
            else:
                named(server, "chef", "cook" if number % 5 else None, steering)
        except RequestError as exc:
            return exc.code
        return "done"

    with ThreadPoolExecutor(8) as pool:
        told = [*pool.map(go, range(160))]
    assert set(told) <= {"done", "model_not_found"}
    assert told.count("done") > 80
    for database in opened:
        database.close()
