"""What is wrong is said before anything is sent, in the server's words."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
from tests.support.scripted_server import ScriptedServer

from saeclamp import (
    Ablate,
    Add,
    ArgumentTypeError,
    Clamp,
    Client,
    FeatureHit,
    FeatureHits,
    InvalidArgumentError,
    Readout,
    Rule,
    SaeclampError,
    Steering,
    Suggestion,
    Variant,
    extra_body,
)
from saeclamp.types import Contrast, Derive, Inspect, as_steering
from saeclamp.types.interventions import A_FEATURE
from saeclamp.types.refusals import did_you_mean, listed, nearest, shown

SEA = FeatureHit(feature="bundled/123", sae="bundled", index=123)
CLAMP = Clamp(feature="bundled/123", value=1)
RULE = Rule(name="guard", when=SEA.above(1), then="abort")
VARIANT = Variant(
    id="m:sea", version="m:sea@0", name="sea", base="m", steering={}, meaning="sha256:0", sha256="0", created=0
)


@pytest.mark.parametrize(
    ("build", "param", "says"),
    [
        (lambda: Clamp(feature="sea", value=1), "feature", f"feature: {A_FEATURE}, not 'sea'."),
        (
            lambda: Clamp(feature="a/1", value=1, unti="act"),  # type: ignore[call-arg]
            "unti",
            "unti: unknown field 'unti'. Did you mean 'unit'? Known: feature, vector, tokens, special_tokens, op, value, "
            "unit.",
        ),
        (lambda: Clamp(feature="a/1"), "value", "value: the field is required."),  # type: ignore[call-arg]
        (lambda: Clamp(value=1), None, "Clamp: give one of 'feature' and 'vector'."),
        (lambda: Clamp(feature="a/1", vector="v", value=1), None, "Clamp: give one of 'feature' and 'vector'."),
        (
            lambda: Clamp(feature="a/1", value=1, unit="acts"),  # type: ignore[arg-type]
            "unit",
            "unit: The value should be 'max_act', 'act' or 'resid_norm', not 'acts'.",
        ),
        (
            lambda: Steering(rules=(RULE, RULE)),
            None,
            "Steering: rules[0] and rules[1] are both named 'guard'.",
        ),
        (
            lambda: Steering(interventions=(SEA,)),  # type: ignore[arg-type]
            "interventions[0]",
            "interventions[0]: bundled/123 is a feature, and what becomes of it is not said: write hit.clamp(1.0) or "
            "another.",
        ),
        (
            lambda: Readout(features="a/1"),  # type: ignore[arg-type]
            "features",
            "features: a list is needed, not one string.",
        ),
        (
            lambda: Inspect(text="a", topk=3),  # type: ignore[call-arg]
            "topk",
            "topk: unknown field 'topk'. Did you mean 'top_k'? Known: text, messages, features, top_k, saes, aggregate, "
            "order, limit, include_template.",
        ),
        (
            lambda: Contrast(positive=("a",), negative=()),
            "negative",
            "negative: the list is empty.",
        ),
        (
            lambda: SEA.clamp(None),
            "value",
            "value: bundled/123 was not calibrated, so it has no best strength; give a value.",
        ),
    ],
)
def test_a_wrong_field_is_named_with_what_is_right(build: Callable[[], object], param: str | None, says: str) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        build()
    assert (str(raised.value), raised.value.param) == (says, param)


def ruled(then: Any) -> dict[str, Any]:
    return {"rules": [{"name": "guard", "when": {"feature": "a/1", "above": 1}, "then": then}]}


@pytest.mark.parametrize(
    ("then", "param", "says"),
    [
        ("stop", "", "'then' is 'abort', 'note' or a list of interventions, not 'stop'."),
        (None, "", "'then' is 'abort', 'note' or a list of interventions, not None."),
        ([], "", "'then' is 'abort', 'note' or a list of interventions."),
        ({"op": "ablate", "feature": "a/1"}, "", "'then' is 'abort', 'note' or a list of interventions."),
        (["abort"], "[0]", "an intervention is an object with 'op': clamp, add, at_least, at_most, scale, ablate."),
        ([{"op": "clamp", "feature": "a/1"}], "[0].value", "the field is required."),
        ([{"op": "clamp", "feature": "a/1", "value": 1, "unti": "act"}], "[0].unti", "unknown field 'unti'."),
        ([{"op": "clmp", "feature": "a/1"}], "[0]", "unknown operation 'clmp'. Did you mean 'clamp'?"),
        ([{"op": "clamp", "feature": 5, "value": 1}], "[0].feature", f"{A_FEATURE}, not 5."),
    ],
)
def test_what_is_wrong_within_a_rule_is_named_where_it_stands(then: Any, param: str, says: str) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        as_steering(ruled(then))
    place = f"steering.rules[0].then{param}"
    assert raised.value.param == place
    assert str(raised.value).startswith(f"{place}: {says}")


def test_a_rule_without_then_is_told_what_can_stand_there() -> None:
    rule = {name: value for name, value in ruled(None)["rules"][0].items() if name != "then"}
    with pytest.raises(InvalidArgumentError, match=r"then: 'then' is 'abort', 'note' or a list of interventions\.$"):
        as_steering({"rules": [rule]})


@pytest.mark.parametrize(
    ("passage", "says"),
    [
        (5, "positive[0]: The value should be a valid string, not 5."),
        ({"role": "user", "content": "a"}, "positive[0]: The value should be a valid string."),
        ("", "positive[0]: String should have at least 1 character, not ''."),
        ([], "positive[0]: the list is empty."),
        (["a"], "positive[0][0]: The value should be a valid dictionary, not 'a'."),
        ([{"role": "user", "content": "a"}] * 1025, "positive[0]: List should have at most 1024 items"),
    ],
)
def test_a_wrong_conversation_is_not_told_to_be_a_text(passage: Any, says: str) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        Contrast(positive=(passage,), negative=("b",))
    assert str(raised.value).startswith(says)


def test_tokens_of_a_derived_vector_are_other_tokens_than_those_of_an_intervention() -> None:
    texts = ("a", "b", "c", "d")
    with pytest.raises(InvalidArgumentError) as raised:
        Derive(name="v", site="resid_post.1", positive=texts, negative=texts, tokens="first")  # type: ignore[arg-type]
    assert str(raised.value) == "tokens: The value should be 'last' or 'all', not 'first'."


@pytest.mark.parametrize(
    ("build", "given"),
    [
        (lambda: Clamp(feature="a/1", value="much"), "'much'"),  # type: ignore[arg-type]
        (lambda: Clamp(feature="a/1", value=1e7), "10000000.0"),
        (lambda: Clamp(feature="a/1", value=True), "True"),
        (lambda: Clamp(feature="a/1", value=1, tokens="answer"), "'answer'"),  # type: ignore[arg-type]
        (lambda: Clamp(vector="a b", value=1), "'a b'"),
        (lambda: Readout(top_k=1000), "1000"),
        (lambda: Inspect(text="a", aggregate="sum"), "'sum'"),  # type: ignore[arg-type]
    ],
)
def test_every_refusal_repeats_the_wrong_value(build: Callable[[], object], given: str) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        build()
    assert str(raised.value).endswith(f", not {given}.")


def test_fields_are_given_by_name() -> None:
    with pytest.raises(
        TypeError, match=r"given by name: Ablate\(feature=..., vector=..., tokens=..., special_tokens=...\)"
    ):
        Ablate("bundled/123")  # type: ignore[misc]


@pytest.mark.parametrize(
    ("steering", "says"),
    [
        ("sea", "model='<base>:sea'"),
        ("bundled/sea", "write Clamp(feature='bundled/sea', value=...)"),
        (RULE, "write Steering(rules=(rule,))"),
        (Readout(top_k=1), "write Steering(readout=readout)"),
        (SEA.above(1), "a condition stands in a rule"),
        (SEA, "write hit.clamp(1.0)"),
        (FeatureHits(data=(SEA,), num_found=1), "pick one of its features"),
        (Suggestion(wish="x", outcome="found", steering={}, num_tried=1), "pass suggestion.steering"),
        (VARIANT, "model='m:sea'"),
        (3, "interventions such as Clamp(feature=..., value=...), not 3"),
        (["sea"], "steering[0]: a variant is asked for by its model's name"),
        ([CLAMP, RULE], "steering[1]: a rule stands in the whole object"),
        ([CLAMP, SEA], "steering[1]: bundled/123 is a feature"),
        ([Steering(interventions=(CLAMP,))], "steering[0]: it is a whole Steering"),
    ],
)
def test_what_is_no_steering_is_told_what_was_meant(
    server: ScriptedServer, client: Client, steering: Any, says: str
) -> None:
    with pytest.raises(ArgumentTypeError) as raised:
        client.chat.completions.create(messages=[], steering=steering)
    assert says in str(raised.value)
    assert server.seen == []


@pytest.mark.parametrize(
    ("steering", "param"),
    [
        ({"interventions": [{"op": "clamp", "feature": "sea", "value": 1}]}, "steering.interventions[0].feature"),
        ({"interventions": [{"op": "clmp", "feature": "a/1", "value": 1}]}, "steering.interventions[0]"),
        ({"op": "clamp", "feature": "a/1", "value": 1}, "steering.op"),
        ([{"op": "add", "feature": "a/1", "valeu": 1}], "steering.interventions[0].valeu"),
        ({"rules": [{"name": "a", "when": {"feature": "a/1"}, "then": "abort"}]}, "steering.rules[0].when"),
    ],
)
def test_steering_as_json_is_refused_with_the_path_that_the_server_would_name(steering: Any, param: str) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        as_steering(steering)
    assert raised.value.param == param
    assert str(raised.value).startswith(f"{param}: ")


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (
            lambda features: features.contrast("text", "text"),
            "positive: a list of texts is needed, not one text: [text, ...].",
        ),
        (lambda features: features.contrast(["text"], "text"), "negative: a list of texts is needed"),
        (lambda features: features.neighbours(["a/1"]), "neighbours(*features)"),
        (lambda features: features.neighbours("sea"), "features[0]: a feature is written"),
        (lambda features: features.get("sea"), "a feature is written <sae>/<index> or <sae>/<name>"),
        (lambda features: features.inspect("text", features="a/1"), "features: a list is needed, not one string."),
        (lambda features: features.inspect("text", topk=1), "Did you mean 'top_k'?"),
        (lambda features: features.search("sea", green=True), "Did you mean 'green_zone'?"),
        (lambda features: features.suggest("x"), "wish: "),
        (
            lambda features: features.attribute("text", position=3, target="b"),
            "'position', of a token that is there, or 'target'",
        ),
    ],
)
def test_questions_are_checked_before_they_are_asked(
    server: ScriptedServer, client: Client, ask: Callable[[Any], object], says: str
) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        ask(client.features)
    assert says in str(raised.value)
    assert server.seen == []


def test_steering_that_is_given_twice_names_both_places(client: Client) -> None:
    with pytest.raises(ArgumentTypeError, match=r"twice: as 'steering' and as 'extra_body.steering'"):
        client.completions.create(prompt="a", steering=CLAMP, extra_body=extra_body(CLAMP))


def test_extra_body_takes_a_whole_steering_too() -> None:
    whole = Steering(interventions=(CLAMP, Add(feature="a/1", value=1)), receipt="none")
    assert extra_body(whole) == {"steering": whole.to_json()}
    assert extra_body(CLAMP) == extra_body(Steering(interventions=(CLAMP,)))


@pytest.mark.parametrize(
    ("word", "known", "near"),
    [
        ("unti", ["feature", "tokens", "value", "unit"], "unit"),
        ("gate", ["games", "golden-gate", "sea"], "golden-gate"),
        ("golden", ["games", "golden-gate"], "golden-gate"),
        ("sea-and-ships", ["ships-of-war", "sea"], "sea"),
        ("m:sae", ["m:law", "m:sea"], "m:sea"),
        ("Bundled", ["bundled"], "bundled"),
        ("val", ["unit", "value"], "value"),
        ("xy", ["proxy"], None),
        ("nothing-alike", ["sea", "law"], None),
        ("s" * 10_000, ["s"], None),
    ],
)
def test_a_near_name_is_suggested(word: str, known: list[str], near: str | None) -> None:
    assert did_you_mean(word, known) == (f" Did you mean {near!r}?" if near else "")


@pytest.mark.parametrize("kind", [InvalidArgumentError, ArgumentTypeError])
def test_errors_of_arguments_are_value_errors_and_survive_pickling(kind: type[InvalidArgumentError]) -> None:
    copy = pickle.loads(pickle.dumps(kind("a: b.", "a")))
    assert (type(copy), str(copy), copy.param) == (kind, "a: b.", "a")
    assert isinstance(copy, SaeclampError)
    assert isinstance(copy, ValueError)


def test_among_very_many_names_those_that_can_be_meant_are_compared() -> None:
    many = [f"feature-number-{number}-of-many" for number in range(100_000)]
    assert nearest("golden-gat", [*many, "golden-gate"]) == "golden-gate"
    assert nearest("gate", [*many, "golden-gate"]) == "golden-gate"
    assert nearest("x" * 81, ["x" * 80]) is None


def test_names_are_listed_and_of_many_how_many_more_there_are() -> None:
    assert (listed([]), listed(["a", "b"])) == ("none", "a, b")
    assert listed(map(str, range(53))).endswith("48, 49 and 3 more")


def test_a_value_is_shown_up_to_a_length() -> None:
    assert (shown("sea"), shown("x" * 81)) == ("'sea'", f"'{'x' * 80}'...")


def test_a_message_within_itself_is_refused_before_a_session_is_named_after_it() -> None:
    message: dict[str, Any] = {"role": "user"}
    message["content"] = message
    with Client("http://127.0.0.1:1") as client, pytest.raises(InvalidArgumentError, match="cannot be written as JSON"):
        client.chat.completions.create(messages=[message], model="m")
