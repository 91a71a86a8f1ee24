"""A body that looks as if it asked for steering gets it, or is refused at the right place."""

from __future__ import annotations

import time
from typing import Any

import pytest

from saeclamp.types import looks_like_steering
from saeclamp.types.refusals import json_path
from saeclamp_server.api.steering_body import parse_body, steering_of
from saeclamp_server.errors import RequestError

GOOD: dict[str, Any] = {"interventions": [{"op": "clamp", "feature": "a/1", "value": 1.0}]}


@pytest.mark.parametrize(
    "content",
    [
        b'{"steering":{"a":1},"steering":null}',
        b'{"steering":null,"x":1,"steering":{}}',
        b'{"steering":{"rules":[{"name":"a"}],"rules":[]}}',
        b'{"steering":{"interventions":[{"value":0.75,"value":0}]}}',
    ],
)
def test_steering_given_twice_is_refused(content: bytes) -> None:
    with pytest.raises(RequestError, match="given twice"):
        parse_body(content)


@pytest.mark.parametrize(
    ("content", "param"),
    [
        (b'{"model":"m:sea","model":"m"}', "model"),
        (b'{"variant":"sea","variant":null}', "variant"),
        (b'{"extra_body":{"steering":{}},"extra_body":{}}', "extra_body"),
        (b'{"vllm_xargs":{"steering":"x"},"vllm_xargs":{}}', "vllm_xargs"),
        (b'{"messages":[{"role":"user"}],"x":{},"messages":[]}', "messages"),
        (b'{"gg":1,"n":{"a":{}},"gg":null}', "gg"),
        (b'{"extra_body":{"variant":"sea","variant":null}}', "variant"),
        (b'{"a":[{"extra_body":{"steering":{}},"extra_body":null}]}', "extra_body"),
    ],
)
def test_a_field_of_the_body_that_is_given_twice_is_refused(content: bytes, param: str) -> None:
    with pytest.raises(RequestError, match="is given twice") as raised:
        parse_body(content)
    assert raised.value.param == param


@pytest.mark.parametrize(
    "content", [b'{"tools":[{"a":1,"a":2}]}', b'{"metadata":{"x":1,"x":2},"n":1}', b'[{"a":1,"a":2}]']
)
def test_what_users_make_up_may_say_a_thing_twice(content: bytes) -> None:
    parse_body(content)


def test_other_bodies_are_parsed_as_they_are() -> None:
    assert parse_body(b'{"a": [1, {"b": null}], "steering": {"c": 2.5}}') == {
        "a": [1, {"b": None}],
        "steering": {"c": 2.5},
    }


@pytest.mark.parametrize("content", [b'{"stop":["\\ud800"]}', b'{"a":{"\\uDFFF":1}}'])
def test_half_of_a_surrogate_pair_is_refused(content: bytes) -> None:
    with pytest.raises(RequestError, match="surrogate"):
        parse_body(content)


@pytest.mark.parametrize(
    ("content", "param"),
    [
        (b'{"temperature":NaN}', "temperature"),
        (b'{"temperature":-Infinity}', "temperature"),
        (b'{"top_p":1e999}', "top_p"),
        (b'{"a":{"b":[1,{"c":[[2.5,NaN]]}]}}', "a.b[1].c[0][1]"),
        (b'{"a":[{"b":NaN}]}', "a[0].b"),
        (b'{"top_p":1' + b"0" * 400 + b".0}", "top_p"),
    ],
)
def test_a_number_that_is_none_is_refused(content: bytes, param: str) -> None:
    with pytest.raises(RequestError) as raised:
        parse_body(content)
    assert raised.value.param == param


def test_what_only_looks_like_a_huge_number_is_text() -> None:
    assert parse_body(b'{"a":"NaN 1e999","b":1e308}') == {"a": "NaN 1e999", "b": 1e308}


def test_a_whole_surrogate_pair_is_text() -> None:
    assert parse_body(b'{"a":"\\ud83d\\ude00"}') == {"a": "\U0001f600"}


def test_a_misspelt_part_of_steering_is_not_taken_for_another_projects() -> None:
    with pytest.raises(RequestError, match="Did you mean 'interventions'"):
        steering_of({"steering": {"intervention": []}})


def test_conditions_that_are_nested_too_deeply_are_refused() -> None:
    condition: dict[str, Any] = {"feature": "a/1", "above": 1}
    for _ in range(40):
        condition = {"not": condition}
    with pytest.raises(RequestError, match="nested at most 32 deep"):
        steering_of({"steering": {"rules": [{"name": "r", "when": condition, "then": "abort"}]}})


def test_a_good_body_is_read() -> None:
    steering = steering_of({"model": "m", "steering": GOOD})
    assert steering is not None
    assert steering.interventions[0].feature == "a/1"


@pytest.mark.parametrize("body", [{}, {"steering": None}, {"controller": None}, [], "x", None])
def test_a_body_that_asks_for_nothing_gets_nothing(body: Any) -> None:
    assert steering_of(body) is None


@pytest.mark.parametrize(
    ("tokens", "param", "says"),
    [
        ("promt", "tokens", "'all', 'prompt' or 'generated'"),
        ({}, "tokens", "an object with one of first, after, last, generated, roles, positions"),
        ({"frist": 3}, "tokens", "an object with one of first, after, last, generated, roles, positions"),
        (3, "tokens", "an object with one of first, after, last, generated, roles, positions"),
        ({"first": 0}, "tokens.first", "greater than or equal to 1"),
        ({"first": 1, "last": 2}, "tokens.last", "unknown field 'last'. Known: first"),
        ({"roles": ["usr"]}, "tokens.roles[0]", "'user'"),
        ({"last": 0}, "tokens.last", "greater than or equal to 1"),
        ({"generated": [2]}, "tokens.generated", "the list is too short: its item 1 is missing"),
        ({"generated": [0, 1, 2]}, "tokens.generated", "at most 2 items"),
        ({"generated": [-1, 2]}, "tokens.generated[0]", "greater than or equal to 0, not -1"),
        ({"generated": [2, 2]}, "tokens", "the window from 2 to before 2 has no position"),
        ({"positions": []}, "tokens.positions", "the list is empty"),
        ({"positions": [1, 1.5]}, "tokens.positions[1]", "a valid integer"),
    ],
)
def test_what_is_wrong_with_the_choice_of_tokens_is_said(tokens: Any, param: str, says: str) -> None:
    with pytest.raises(RequestError) as raised:
        steering_of({"steering": {"interventions": [{"op": "ablate", "feature": "a/1", "tokens": tokens}]}})
    assert raised.value.param == f"steering.interventions[0].{param}"
    assert says in raised.value.message


@pytest.mark.parametrize(
    ("loc", "value", "path"),
    [
        ((), {}, "steering"),
        (("interventions",), {}, "steering.interventions"),
        (
            ("interventions", 1, "clamp", "value"),
            {"interventions": [{}, {"value": 1}]},
            "steering.interventions[1].value",
        ),
        (("interventions", 0, "clamp", "value"), {"interventions": [{}]}, "steering.interventions[0].value"),
        (
            ("interventions", 0, "add", "feature", "<path>"),
            {"interventions": [{"feature": "x"}]},
            "steering.interventions[0].feature",
        ),
        (
            ("interventions", 0, "add", "feature", "<object>", "index"),
            {"interventions": [{"feature": {"sae": "a"}}]},
            "steering.interventions[0].feature.index",
        ),
        (("interventions", 0, "scale"), {"interventions": ["not an object"]}, "steering.interventions[0]"),
    ],
)
def test_paths_name_the_place_in_the_users_json(loc: tuple[int | str, ...], value: Any, path: str) -> None:
    assert json_path(loc, value) == path


def test_steering_of_very_many_or_very_long_fields_is_refused_before_it_is_checked() -> None:
    with pytest.raises(RequestError, match="more than 10000 fields") as refused:
        steering_of({"steering": {"interventions": [{f"key{number}": 1 for number in range(10_001)}]}})
    assert refused.value.param == "steering"
    with pytest.raises(RequestError, match="a field's name has 300 characters"):
        steering_of({"steering": {"rules": [{"x" * 300: 1}]}})


def test_what_a_refusal_quotes_is_short_however_long_it_was() -> None:
    long = "clamp" * 100_000
    for body in (
        {"steering": {"interventions": [{"op": long, "feature": "a/1", "value": 1}]}},
        {"steering": {"interventions": [{"op": "clamp", "feature": long, "value": 1}]}},
        {"steer" + long: 1},
        {"é" + long: 1},
        {"vllm_xargs": {"steer" + long: 1}},
    ):
        with pytest.raises(RequestError) as refused:
            steering_of(body)
        assert len(refused.value.message) < 1200
        assert len(refused.value.param or "") < 1200


def test_a_key_is_compared_by_its_beginning_alone() -> None:
    assert looks_like_steering("my_steering_" + "x" * 1_000_000)
    assert not looks_like_steering("x" * 1_000_000 + "steering")
    assert not looks_like_steering("\ufdfa" * 1_000_000)  # each of which is eighteen letters


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","prompt":[%s]}' % b",".join([b"1"] * 1_100_000),
        b'{"messages":[%s]}' % b",".join([b'{"role":"user","content":"a"}'] * 20_001),
        b'{"messages":[{"content":[%s]}]}' % b",".join([b"{}"] * 20_001),
        b"{%s}" % b",".join(b'"k%d":1' % number for number in range(1_100_000)),
    ],
    ids=["ids", "messages", "parts", "fields"],
)
def test_a_body_of_more_values_than_any_request_has_is_refused_soon(body: bytes) -> None:
    begin = time.thread_time()
    with pytest.raises(RequestError, match=r"commas|more than 20000 objects"):
        parse_body(body)
    assert time.thread_time() - begin < 1


def test_long_prompts_and_long_conversations_are_read() -> None:
    assert len(parse_body(b'{"prompt":[%s]}' % b",".join([b"1"] * 1_000_000))["prompt"]) == 1_000_000
    assert len(parse_body(b'{"messages":[%s]}' % b",".join([b'{"a":1}'] * 10_000))["messages"]) == 10_000
