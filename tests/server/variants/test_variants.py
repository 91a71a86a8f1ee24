"""What a name means, what is saved under it, and what a request adds."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from tests.support.sae_entries import entry, served_saes
from tests.support.variants import BRIDGE, FOOD, create, run, served, version

from saeclamp.types import Add, Clamp, FeatureCondition, NewVariant, Roles, Rule, Steering
from saeclamp_server.database import Database
from saeclamp_server.errors import RequestError
from saeclamp_server.site_norms import SiteNorms
from saeclamp_server.steering import SteeringContext
from saeclamp_server.variants import VariantRegistry, VariantStore
from saeclamp_server.variants.names import ModelName, near_name


def test_a_variant_is_found_by_its_name_and_by_its_version(variants: VariantRegistry) -> None:
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


def test_the_same_content_is_the_same_version_and_another_moves_the_name(variants: VariantRegistry) -> None:
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


def test_names_are_of_one_base(variants: VariantRegistry) -> None:
    create(variants, "chef", FOOD, base="tiny-too")
    assert run(variants.get("tiny-too:chef")).base == "tiny-too"
    with pytest.raises(RequestError) as refused:
        run(variants.get("chef"))
    assert (refused.value.status, refused.value.code) == (404, "model_not_found")
    assert "tiny-too:chef" in refused.value.message


def test_what_is_no_variant_of_ours_is_left_to_vllm(variants: VariantRegistry) -> None:
    for model in ("tiny", "another", "another:chef", "tiny:", "tiny:a b", "tiny:chef@zz"):
        assert run(variants.of_model(model)) is None
    for model in ("tiny", "its-adapter"):
        run(variants.refuse_unknown(model, ["its-adapter"]))
    run(variants.refuse_unknown("another", [], allows_any=True))


def test_a_name_that_nothing_has_is_refused_with_all_that_there_are(variants: VariantRegistry) -> None:
    create(variants, "chef", FOOD, alias="the-cook")
    with pytest.raises(RequestError) as refused:
        run(variants.refuse_unknown("gpt-4", []))
    assert refused.value.message == (
        "There is no model 'gpt-4'. There are: tiny, tiny-too, the-cook, tiny:bridge, tiny-too:bridge, tiny:chef."
    )


def test_a_near_name_is_refused_where_any_name_stands_for_the_model(variants: VariantRegistry) -> None:
    with pytest.raises(RequestError, match="Did you mean"):
        run(variants.refuse_unknown("tinny:bridge", [], allows_any=True))


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
def test_a_near_name_of_a_model_or_variant_is_suggested(variants: VariantRegistry, model: str, near: str) -> None:
    async def ask() -> None:
        assert await variants.of_model(model) is None
        await variants.refuse_unknown(model, ["its-adapter"])

    with pytest.raises(RequestError, match=f"Did you mean '{near}'") as refused:
        run(ask())
    assert (refused.value.status, refused.value.code, refused.value.param) == (404, "model_not_found", "model")


def test_the_letters_of_a_variant_count_alone_in_a_long_name() -> None:
    models, variants = ["smollm2-135m-instruct"], [f"smollm2-135m-instruct:{name}" for name in ("space", "sea", "law")]
    assert near_name("smollm2-135m-instruct:sae", models, variants) == "smollm2-135m-instruct:sea"
    assert near_name("smollm2-135m-instruct:nothing-alike", models, variants) is None


def test_the_feature_books_variants_are_there_and_stay(variants: VariantRegistry) -> None:
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
def test_what_could_not_be_used_is_not_saved(variants: VariantRegistry, new: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as refused:
        run(variants.create(NewVariant(**new)))
    assert (refused.value.status, refused.value.param) == (400, param)
    assert len(run(variants.listed())) == 2


def test_a_deleted_name_is_gone_with_its_versions(variants: VariantRegistry) -> None:
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
    database = Database(url)
    store = VariantStore(database)
    before = VariantRegistry(store, served(200.0), ["tiny"])
    made, _ = create(before, "chef", BRIDGE)
    version = run(before.get("chef"))
    assert before.resolved(version, None).steering == BRIDGE
    after = VariantRegistry(store, served(150.0), ["tiny"])
    with pytest.raises(RequestError) as refused:
        after.resolved(version, None)
    assert (refused.value.code, refused.value.param) == ("variant_changed", "model")
    again, is_new = create(after, "chef", BRIDGE)
    assert is_new
    assert again.sha256 != made.sha256
    assert after.resolved(run(after.get("chef")), None).steering == BRIDGE
    database.close()


def test_a_requests_own_steering_is_added_and_contradictions_name_the_variant(variants: VariantRegistry) -> None:
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
    database = Database(url)
    store = VariantStore(database)
    made = VariantRegistry(store, served(), ["tiny"])
    create(made, "chef", FOOD)
    version = run(made.get("chef"))
    without = VariantRegistry(
        store, SteeringContext(served_saes((entry("other", 3, 10), SiteNorms(50.0, [2.0] * 10)))), ["tiny"]
    )
    own = Steering(interventions=(Clamp(feature="other/7", value=1, unit="act"),))
    for steering in (None, own):
        with pytest.raises(RequestError) as refused:
            without.resolved(version, steering)
        assert refused.value.param == "model"
        assert "tiny:chef" in refused.value.message
    database.close()


def test_two_rules_of_one_name_are_refused(variants: VariantRegistry) -> None:
    rule = Rule(name="guard", when=FeatureCondition(feature="big/bridge", above=1), then="abort")
    create(variants, "safe", Steering(rules=(rule,)))
    with pytest.raises(RequestError, match="rule named 'guard'"):
        variants.resolved(run(variants.get("safe")), Steering(rules=(rule,)))


def test_more_than_the_engine_takes_is_refused_also_where_it_comes_from_both(variants: VariantRegistry) -> None:
    def rules(count: int, name: str) -> Steering:
        when = FeatureCondition(feature="big/bridge", above=1)
        return Steering(rules=tuple(Rule(name=f"{name}-{number}", when=when, then="abort") for number in range(count)))

    create(variants, "safe", rules(9, "variant"))
    version = run(variants.get("safe"))
    assert len(variants.resolved(version, rules(7, "own")).program.rules) == 16
    with pytest.raises(RequestError, match="8 rules and the variant tiny:safe has 9; together at most 16") as refused:
        variants.resolved(version, rules(8, "own"))
    assert refused.value.param == "steering.rules"


def test_a_rule_of_the_request_that_moves_what_the_variant_moves_blames_the_variant(variants: VariantRegistry) -> None:
    create(variants, "chef", BRIDGE)
    moved = BRIDGE.interventions[0].feature
    rule = Rule(name="r", when=FeatureCondition(feature="big/bridge", above=1), then=(Clamp(feature=moved, value=1),))
    with pytest.raises(RequestError) as refused:
        variants.resolved(run(variants.get("chef")), Steering(rules=(rule,)))
    assert refused.value.message.startswith("The variant tiny:chef cannot be used with this: it already moves")
    assert refused.value.param == "model"


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
    database = Database(url)
    store = VariantStore(database)
    first, second = (VariantRegistry(store, served(resid_norm=length), ["tiny"]) for length in (before, after))
    create(first, "pushed", pushed)
    was = first.resolved(run(first.get("pushed")), None).program
    version = run(second.get("pushed"))
    assert second.resolved(version, None).program.spec == was.spec
    own = Steering(interventions=(Clamp(feature="big/plain", value=1),))
    joined = second.resolved(version, own).program
    assert [edit.value for edit in joined.edits] == [3.0, was.edits[0].value]
    elsewhere = VariantRegistry(store, served(resid_norm=before * 1.001), ["tiny"])
    with pytest.raises(RequestError) as refused:
        elsewhere.resolved(version, None)
    assert refused.value.code == "variant_changed"
    database.close()


def test_tokens_that_are_chosen_by_role_can_be_saved(variants: VariantRegistry) -> None:
    steering = Steering(interventions=(Clamp(feature="big/bridge", value=1, tokens=Roles(roles=("user",))),))
    made, _ = create(variants, "listener", steering)
    assert run(variants.get("listener")).parsed == steering
    assert made.meaning.startswith("sha256:")


def test_a_variant_is_known_by_its_bare_name_and_a_model_is_not_taken_for_one(variants: VariantRegistry) -> None:
    create(variants, "chef", FOOD)
    found = run(variants.of_bare_name("chef"))
    assert found is not None
    assert found.to_wire().id == "tiny:chef"
    assert [run(variants.of_bare_name(name)) for name in ("tiny", "nosuch", "tiny:chef", "")] == [None] * 4


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


def test_a_preset_that_the_server_does_not_allow_is_left_out_and_said(database: Database, said: list[str]) -> None:
    # 1.5 x 200 times a row of length 2 is 12 times the stream's 50
    for max_dose, names in ((13.0, ["bridge"]), (11.0, [])):
        context = replace(served(), max_dose=max_dose)
        variants = VariantRegistry(VariantStore(database), context, ["tiny"])
        assert [one.name for one in run(variants.listed())] == names
    (left_out,) = said
    assert left_out.startswith(
        "the preset tiny:bridge is left out: At resid_post 8 this could move a token by 12 times"
    )
    assert left_out.endswith("this server allows 11.")
