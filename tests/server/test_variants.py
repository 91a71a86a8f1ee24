"""Variants: what is kept, what a name means, and what survives."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import random
import time
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from pydantic import ValidationError
from sqlalchemy import create_engine, text
from tests.server.conftest import entry

from saeclamp import InvalidArgumentError
from saeclamp.types import Add, Clamp, FeatureCondition, NewVariant, Roles, Rule, Steering, VariantExport
from saeclamp_saes.library.feature_book import FeatureNote
from saeclamp_server.doses import Lengths
from saeclamp_server.errors import RequestError
from saeclamp_server.steering import Served
from saeclamp_server.variants import StoreError, Variants, VariantStore, default_url
from saeclamp_server.variants.content import Version
from saeclamp_server.variants.names import ModelName, near_name

ResultT = TypeVar("ResultT")
BRIDGE = Steering(interventions=(Clamp(feature="big/bridge", value=2),))
FOOD = Steering(interventions=(Add(feature="big/food", value=3, unit="act"),))


def run(task: Coroutine[Any, Any, ResultT]) -> ResultT:
    return asyncio.run(task)


def served(max_act: float = 200.0) -> Served:
    bridge = FeatureNote(4, "bridge", max_act, (1, 2), 1.5, "A bridge.")
    food, unmeasured = FeatureNote(5, "food", None), FeatureNote(6, "plain", 3.0)
    return Served({"big": entry("big", 8, 100, bridge, food, unmeasured)}, {"big": Lengths(50.0, [2.0] * 100)})


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    import pgserver

    server = pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="stop")
    yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
    server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/deep/er/variants.sqlite3"
    address: str = request.getfixturevalue("postgres")
    with create_engine(address).begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
    return address


@pytest.fixture
def variants(url: str) -> Iterator[Variants]:
    store = VariantStore(url)
    yield Variants(store, served(), ["tiny", "tiny-too"])
    store.close()


def create(variants: Variants, name: str, steering: Steering, **options: Any) -> Any:
    return run(variants.create(NewVariant(name=name, steering=steering, **options)))


def test_a_variant_is_found_by_its_name_and_by_its_version(variants: Variants) -> None:
    made, is_new = create(variants, "chef", FOOD, description="Cooks.")
    assert is_new
    assert (made.id, made.base, made.read_only) == ("tiny:chef", "tiny", False)
    assert made.version == f"tiny:chef@{made.sha256[:12]}"
    assert abs(made.created - time.time()) < 60
    for name in ("chef", "tiny:chef", made.version, f"chef@{made.sha256[:12]}", f"chef@{made.sha256}"):
        assert run(variants.get(name)).to_wire() == made
    for model in (made.id, made.version):
        version = run(variants.of_model(model))
        assert version is not None
        assert version.parsed == FOOD


def test_the_same_content_is_the_same_version_and_another_moves_the_name(variants: Variants) -> None:
    first, _ = create(variants, "chef", FOOD)
    assert create(variants, "chef", FOOD) == (first, False)
    second, is_new = create(variants, "chef", BRIDGE)
    assert is_new
    assert second.sha256 != first.sha256
    assert run(variants.get("chef")).sha256 == second.sha256
    assert run(variants.get(first.version)).parsed == FOOD
    # and back
    assert create(variants, "chef", FOOD) == (first, False)
    assert run(variants.get("chef")).sha256 == first.sha256


def test_names_are_of_one_base(variants: Variants) -> None:
    create(variants, "chef", FOOD, base="tiny-too")
    assert run(variants.get("tiny-too:chef")).base == "tiny-too"
    with pytest.raises(RequestError) as refused:
        run(variants.get("chef"))
    assert (refused.value.status, refused.value.code) == (404, "model_not_found")
    assert "tiny-too:chef" in refused.value.message


def test_what_is_no_variant_of_ours_is_left_to_vllm(variants: Variants) -> None:
    for model in ("tiny", "another", "another:chef", "tiny:", "tiny:a b", "tiny:chef@zz"):
        assert run(variants.of_model(model)) is None
    for model in ("another", "tiny", "its-adapter"):
        run(variants.refuse_near_miss(model, ["its-adapter"]))


@pytest.mark.parametrize(
    ("model", "near"),
    [
        ("tiny:brigde", "tiny:bridge"),
        ("tiny:bri", "tiny:bridge"),
        ("tiny:bridge@000000000000", "tiny:bridge"),
        ("tinny:bridge", "tiny:bridge"),
        ("another:bridge", "tiny:bridge"),
        ("bridg", "tiny:bridge"),
        ("tinyy", "tiny"),
        ("its-adaptor", "its-adapter"),
    ],
)
def test_a_near_name_of_a_model_or_variant_is_suggested(variants: Variants, model: str, near: str) -> None:
    async def ask() -> None:
        assert await variants.of_model(model) is None
        await variants.refuse_near_miss(model, ["its-adapter"])

    with pytest.raises(RequestError, match=f"Did you mean '{near}'") as refused:
        run(ask())
    assert (refused.value.status, refused.value.code, refused.value.param) == (404, "model_not_found", "model")


def test_the_letters_of_a_variant_count_alone_in_a_long_name() -> None:
    models, variants = ["smollm2-135m-instruct"], [f"smollm2-135m-instruct:{name}" for name in ("space", "sea", "law")]
    assert near_name("smollm2-135m-instruct:sae", models, variants) == "smollm2-135m-instruct:sea"
    assert near_name("smollm2-135m-instruct:nothing-alike", models, variants) is None


def test_the_feature_books_variants_are_there_and_stay(variants: Variants) -> None:
    (bridge,) = (one for one in run(variants.listed()) if one.id == "tiny:bridge")
    assert (bridge.read_only, bridge.description) == (True, "A bridge.")
    assert Steering.model_validate(bridge.steering) == Steering(interventions=(Clamp(feature="big/bridge", value=1.5),))
    assert [one.id for one in run(variants.listed())] == ["tiny:bridge", "tiny-too:bridge"]
    for attempt in (lambda: create(variants, "bridge", FOOD), lambda: run(variants.delete("bridge"))):
        with pytest.raises(RequestError) as refused:
            attempt()
        assert refused.value.code == "variant_read_only"


@pytest.mark.parametrize(
    ("new", "param"),
    [
        ({"name": "export", "steering": FOOD}, "name"),
        ({"name": "chef", "steering": FOOD, "base": "other"}, "base"),
        ({"name": "chef", "steering": Steering(interventions=(Clamp(feature="big/brigde", value=1),))},
         "steering.interventions[0].feature"),
    ],
)  # fmt: skip
def test_what_could_not_be_used_is_not_saved(variants: Variants, new: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as refused:
        run(variants.create(NewVariant(**new)))
    assert (refused.value.status, refused.value.param) == (400, param)
    assert len(run(variants.listed())) == 2


def test_a_deleted_name_is_gone_with_its_versions(variants: Variants) -> None:
    first, _ = create(variants, "chef", FOOD)
    create(variants, "chef", BRIDGE)
    assert run(variants.delete("chef")) == ("tiny:chef", 2)
    for name in ("chef", first.version):
        with pytest.raises(RequestError) as refused:
            run(variants.get(name))
        assert refused.value.status == 404
    with pytest.raises(RequestError):
        run(variants.delete("chef"))


def test_a_variant_that_would_mean_something_else_is_refused(url: str) -> None:
    store = VariantStore(url)
    before = Variants(store, served(200.0), ["tiny"])
    made, _ = create(before, "chef", BRIDGE)
    version = run(before.get("chef"))
    assert before.resolved(version, None).steering == BRIDGE
    after = Variants(store, served(150.0), ["tiny"])
    with pytest.raises(RequestError) as refused:
        after.resolved(version, None)
    assert (refused.value.code, refused.value.param) == ("variant_changed", "model")
    again, is_new = create(after, "chef", BRIDGE)
    assert is_new
    assert again.sha256 != made.sha256
    assert after.resolved(run(after.get("chef")), None).steering == BRIDGE
    store.close()


def test_a_requests_own_steering_is_added_and_contradictions_name_the_variant(variants: Variants) -> None:
    create(variants, "chef", FOOD)
    version = run(variants.get("chef"))
    own = Steering(interventions=(Clamp(feature="big/7", value=1, unit="act"),), receipt="none")
    joined = variants.resolved(version, own).steering
    assert joined.interventions == (*own.interventions, *FOOD.interventions)
    assert joined.receipt == "none"
    clash = Steering(interventions=(Clamp(feature="big/5", value=1, unit="act"),))
    with pytest.raises(RequestError) as refused:
        variants.resolved(version, clash)
    assert refused.value.param == "model"
    assert "tiny:chef" in refused.value.message
    mistaken = Steering(interventions=(Clamp(feature="big/nothing", value=1, unit="act"),))
    with pytest.raises(RequestError) as refused:
        variants.resolved(version, mistaken)
    assert refused.value.param == "steering.interventions[0].feature"


def test_what_is_missing_of_a_variant_is_not_blamed_on_the_request(url: str) -> None:
    store = VariantStore(url)
    made = Variants(store, served(), ["tiny"])
    create(made, "chef", FOOD)
    version = run(made.get("chef"))
    without = Variants(store, Served({"other": entry("other", 3, 10)}, {"other": Lengths(50.0, [2.0] * 10)}), ["tiny"])
    own = Steering(interventions=(Clamp(feature="other/7", value=1, unit="act"),))
    for steering in (None, own):
        with pytest.raises(RequestError) as refused:
            without.resolved(version, steering)
        assert refused.value.param == "model"
        assert "tiny:chef" in refused.value.message
    store.close()


def test_two_rules_of_one_name_are_refused(variants: Variants) -> None:
    rule = Rule(name="guard", when=FeatureCondition(feature="big/bridge", above=1), then="abort")
    create(variants, "safe", Steering(rules=(rule,)))
    with pytest.raises(RequestError, match="rule named 'guard'"):
        variants.resolved(run(variants.get("safe")), Steering(rules=(rule,)))


def test_more_than_the_engine_takes_is_refused_also_where_it_comes_from_both(variants: Variants) -> None:
    def rules(count: int, name: str) -> Steering:
        when = FeatureCondition(feature="big/bridge", above=1)
        return Steering(rules=tuple(Rule(name=f"{name}-{number}", when=when, then="abort") for number in range(count)))

    create(variants, "safe", rules(9, "variant"))
    version = run(variants.get("safe"))
    assert len(variants.resolved(version, rules(7, "own")).program.rules) == 16
    with pytest.raises(RequestError, match="8 rules and the variant tiny:safe has 9; together at most 16") as refused:
        variants.resolved(version, rules(8, "own"))
    assert refused.value.param == "steering.rules"


def test_a_rule_of_the_request_that_moves_what_the_variant_moves_blames_the_variant(variants: Variants) -> None:
    create(variants, "chef", BRIDGE)
    moved = BRIDGE.interventions[0].feature
    rule = Rule(name="r", when=FeatureCondition(feature="big/bridge", above=1), then=(Clamp(feature=moved, value=1),))
    with pytest.raises(RequestError) as refused:
        variants.resolved(run(variants.get("chef")), Steering(rules=(rule,)))
    assert refused.value.message.startswith("The variant tiny:chef cannot be used with this: it already moves")
    assert refused.value.param == "model"


def named(variants: Variants, name: str, alias: str | None, steering: Steering = BRIDGE, base: str = "tiny") -> Any:
    return run(variants.create(NewVariant(name=name, base=base, steering=steering, alias=alias)))[0]


def test_an_alias_is_a_name_without_a_colon_that_means_what_the_name_means(variants: Variants) -> None:
    made = named(variants, "chef", "cook")
    assert (made.id, made.alias) == ("tiny:chef", "cook")
    assert run(variants.of_model("cook")) == run(variants.of_model("tiny:chef"))
    again = named(variants, "chef", None, FOOD)
    assert again.alias == "cook"
    assert run(variants.of_model("cook")).parsed == FOOD
    assert run(variants.described("cook")).version == again.version
    assert {one.id: one.alias for one in run(variants.listed()) if not one.read_only} == {"tiny:chef": "cook"}


def test_another_alias_takes_the_place_of_the_first_and_a_deleted_variant_has_none(variants: Variants) -> None:
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
    store = VariantStore(url)
    variants = Variants(store, served(), ["tiny", "tiny-too"], lambda: ["adapter"])
    named(variants, "chef", "cook")
    with pytest.raises(RequestError, match=says) as refused:
        named(variants, name, alias, FOOD)
    assert refused.value.param == param
    assert [one.id for one in run(variants.listed()) if not one.read_only] == ["tiny:chef"]
    store.close()


@pytest.mark.parametrize("alias", ["tiny:chef", "chef@1", "a/b", "", ".a", "a" * 65])
def test_an_alias_has_neither_colon_nor_at(alias: str) -> None:
    with pytest.raises(InvalidArgumentError, match="alias: a name is 1 to 64 letters"):
        NewVariant(name="chef", steering=BRIDGE, alias=alias)


def test_an_alias_of_a_model_that_is_not_served_here_means_nothing(url: str) -> None:
    store = VariantStore(url)
    named(Variants(store, served(), ["tiny"]), "chef", "cook")
    assert run(Variants(store, served(), ["another"]).of_model("cook")) is None
    store.close()


def test_aliases_are_exported_and_taken_in_or_refused_with_the_whole(variants: Variants, tmp_path: Path) -> None:
    named(variants, "chef", "cook")
    named(variants, "plain", None, FOOD)
    export = VariantExport.model_validate_json(json.dumps(run(variants.exported())))
    elsewhere = Variants(VariantStore(f"sqlite:///{tmp_path}/other.sqlite3"), served(), ["tiny"])
    assert run(elsewhere.take_in(export)) == (2, 0)
    assert run(elsewhere.of_model("cook")).name == "chef"
    taken = Variants(VariantStore(f"sqlite:///{tmp_path}/third.sqlite3"), served(), ["tiny"])
    named(taken, "baker", "cook")
    with pytest.raises(RequestError, match="another variant's alias"):
        run(taken.take_in(export))
    assert [one.name for one in run(taken.listed()) if not one.read_only] == ["baker"]


def test_a_database_without_aliases_is_brought_up_to_date(url: str) -> None:
    store = VariantStore(url)
    create(Variants(store, served(), ["tiny"]), "chef", BRIDGE)
    store.close()
    with create_engine(url).begin() as connection:  # as the first migration left it
        connection.execute(text("DROP TABLE saeclamp_variant_aliases"))
        connection.execute(text("UPDATE saeclamp_variant_schema SET version_num = '0001'"))
    store = VariantStore(url)
    variants = Variants(store, served(), ["tiny"])
    assert run(variants.of_model("tiny:chef")).parsed == BRIDGE
    named(variants, "chef", "cook")
    assert run(variants.of_model("cook")).parsed == BRIDGE
    store.close()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(137.258, 137.258 * (1 + 2**-52), id="one-ulp"),
        pytest.param(137.258, 137.258 * (1 - 1e-6), id="a-millionth"),
        pytest.param(137.25 * (1 + 1e-7), 137.25 * (1 - 1e-7), id="across-a-rounding"),
        pytest.param(137.25 * (1 - 1e-7), 137.25 * (1 + 1e-7), id="back-across-it"),
    ],
)
def test_a_variant_in_lengths_of_the_stream_outlasts_a_restart_that_measures_a_little_differently(
    url: str, before: float, after: float
) -> None:
    pushed = Steering(interventions=(Add(feature="big/food", value=0.3, unit="resid_norm"),))
    store = VariantStore(url)
    first, second = (
        Variants(store, replace(served(), lengths={"big": Lengths(length, [2.0] * 100)}), ["tiny"])
        for length in (before, after)
    )
    create(first, "pushed", pushed)
    was = first.resolved(run(first.get("pushed")), None).program
    version = run(second.get("pushed"))
    assert second.resolved(version, None).program.spec == was.spec
    own = Steering(interventions=(Clamp(feature="big/plain", value=1),))
    joined = second.resolved(version, own).program
    assert [edit.value for edit in joined.edits] == [3.0, was.edits[0].value]
    elsewhere = Variants(store, replace(served(), lengths={"big": Lengths(before * 1.001, [2.0] * 100)}), ["tiny"])
    with pytest.raises(RequestError) as refused:
        elsewhere.resolved(version, None)
    assert refused.value.code == "variant_changed"
    store.close()


def test_tokens_that_are_chosen_by_role_can_be_saved(variants: Variants) -> None:
    steering = Steering(interventions=(Clamp(feature="big/bridge", value=1, tokens=Roles(roles=("user",))),))
    made, _ = create(variants, "listener", steering)
    assert run(variants.get("listener")).parsed == steering
    assert made.meaning.startswith("sha256:")


def test_an_export_is_taken_in_elsewhere(variants: Variants, tmp_path: Path) -> None:
    create(variants, "chef", BRIDGE)
    create(variants, "chef", FOOD)
    create(variants, "chef", BRIDGE)  # what the name means is not the newest version
    create(variants, "other", FOOD, description="Äpfel")
    exported = VariantExport.model_validate_json(json.dumps(run(variants.exported())))
    elsewhere = Variants(VariantStore(f"sqlite:///{tmp_path}/other.sqlite3"), served(), ["tiny"])
    assert run(elsewhere.take_in(exported)) == (3, 0)
    assert run(elsewhere.take_in(exported)) == (0, 3)
    for name in ("chef", "other"):
        assert run(elsewhere.get(name)) == run(variants.get(name))
    assert run(elsewhere.exported()) == run(variants.exported())


def test_a_changed_export_is_refused_as_a_whole(variants: Variants, tmp_path: Path) -> None:
    create(variants, "chef", FOOD)
    create(variants, "other", FOOD)
    exported = json.loads(json.dumps(run(variants.exported())))
    exported["data"][1]["steering"]["interventions"][0]["value"] = 9
    elsewhere = Variants(VariantStore(f"sqlite:///{tmp_path}/other.sqlite3"), served(), ["tiny"])
    with pytest.raises(RequestError) as refused:
        run(elsewhere.take_in(VariantExport.model_validate(exported)))
    assert refused.value.param == "data[1].sha256"
    assert [one for one in run(elsewhere.listed()) if not one.read_only] == []


def test_an_export_that_no_database_could_keep_is_refused(variants: Variants) -> None:
    create(variants, "chef", FOOD)
    exported = run(variants.exported())
    exported["data"][0]["created"] = 2**63
    with pytest.raises(ValidationError, match=r"data\.0\.created\n.*less than or equal to 9223372036854775807"):
        VariantExport.model_validate(exported)


def test_a_variant_is_known_by_its_bare_name_and_a_model_is_not_taken_for_one(variants: Variants) -> None:
    create(variants, "chef", FOOD)
    found = run(variants.of_bare_name("chef"))
    assert found is not None
    assert found.to_wire().id == "tiny:chef"
    assert [run(variants.of_bare_name(name)) for name in ("tiny", "nosuch", "tiny:chef", "")] == [None] * 4


def version(name: str, number: int) -> Version:
    steering = Steering(interventions=(Clamp(feature=f"big/{number}", value=1, unit="act"),))
    return Version("tiny", name, json.dumps(steering.to_json(), sort_keys=True), "", "sha256:" + "0" * 64)


def _create_some(url: str, process: int) -> None:
    store = VariantStore(url)  # all of them bring the tables up to date at once
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
    store = VariantStore(url)
    found = store.all_versions()
    assert len({one.sha256 for one in found if one.name.startswith("own-")}) == 60
    assert len({one.sha256 for one in found if one.name == "shared"}) == 60
    for process in range(3):
        assert store.find("tiny", f"own-{process}") == store.find(
            "tiny", f"own-{process}", version(f"own-{process}", 19).sha256
        )
    store.close()


def _create_on_and_on(url: str, number: int, acknowledged: int) -> None:
    store = VariantStore(url)
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
    store = VariantStore(url)
    kept = {one.sha256 for one in store.all_versions()}
    assert {version("crash", number).sha256 for number in acknowledged} <= kept
    last = store.find("tiny", "crash")
    assert last is not None
    # the last one may have been kept and not acknowledged
    assert last.sha256 in (version("crash", start - 1).sha256, version("crash", start).sha256)
    store.close()


def test_a_database_of_a_newer_version_is_not_touched(url: str) -> None:
    VariantStore(url).close()
    with create_engine(url).begin() as connection:
        connection.execute(text("UPDATE saeclamp_variant_schema SET version_num = '9999'"))
    with pytest.raises(StoreError, match="newer version"):
        VariantStore(url)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("mysql://host/database", "SQLite or PostgreSQL"),
        ("nonsense", "no database's URL"),
        ("sqlite:////proc/nowhere/variants.sqlite3", "cannot be made"),
    ],
)
def test_what_is_no_database_is_said_in_a_sentence(address: str, says: str) -> None:
    with pytest.raises(StoreError, match=says):
        VariantStore(address)


def test_a_file_that_is_no_database_is_said_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "variants.sqlite3").write_text("not a database at all, but long enough to be read as one " * 40)
    with pytest.raises(StoreError, match="not a database"):
        VariantStore(f"sqlite:///{tmp_path}/variants.sqlite3")


def test_variants_are_kept_among_the_users_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_url() == "sqlite:////data/saeclamp/variants.sqlite3"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_url() == "sqlite:////home/someone/.local/share/saeclamp/variants.sqlite3"


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ("tiny:chef", ("tiny", "chef", None)),
        ("org/model:7b:chef", ("org/model:7b", "chef", None)),
        ("tiny:chef@0123456789ab", ("tiny", "chef", "0123456789ab")),
        ("tiny:chef@0123", None),
        ("tiny:chef@0123456789AB", None),
        ("tiny", None),
        (":chef", None),
        ("tiny:-chef", None),
    ],
)
def test_names_are_taken_apart(model: str, parts: tuple[str, str, str | None] | None) -> None:
    assert ModelName.parse(model) == parts


def test_a_version_is_addressed_by_all_that_users_give() -> None:
    one = version("chef", 3)
    others = [
        replace(one, base="other"),
        replace(one, name="cook"),
        replace(one, steering="{}"),
        replace(one, description="x"),
        replace(one, meaning="sha256:" + "1" * 64),
    ]
    assert len({one.sha256, *(other.sha256 for other in others)}) == 6
    assert replace(one, created=7, read_only=True).sha256 == one.sha256
