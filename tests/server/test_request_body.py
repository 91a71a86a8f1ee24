"""A body that looks as if it asked for steering gets it, or is refused at the right place."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saeclamp.types import looks_like_steering
from saeclamp.types.refusals import json_path
from saeclamp_server.errors import RequestError
from saeclamp_server.request_body import parse_body, steering_of

GOOD: dict[str, Any] = {"interventions": [{"op": "clamp", "feature": "a/1", "value": 1.0}]}

# the fields of the two requests and what popular clients add: none may be taken for a misspelt `steering`
INNOCENT = [
    "model",
    "messages",
    "prompt",
    "stream",
    "stream_options",
    "stop",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "n",
    "seed",
    "logprobs",
    "top_logprobs",
    "echo",
    "suffix",
    "user",
    "metadata",
    "tools",
    "tool_choice",
    "response_format",
    "store",
    "service_tier",
    "reasoning_effort",
    "structured_outputs",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "best_of",
    "logit_bias",
    "cache_salt",
    "vllm_xargs",
    "extra_body",
    "min_tokens",
    "stop_token_ids",
    "ignore_eos",
    "skip_special_tokens",
    "parallel_tool_calls",
    "request_id",
    "priority",
]


@pytest.mark.parametrize("key", INNOCENT)
def test_ordinary_fields_are_not_near_misses(key: str) -> None:
    assert not looks_like_steering(key)
    assert steering_of({key: {"a": 1}}) is None


@pytest.mark.parametrize(
    "key",
    [
        "steerng",
        "stearing",
        "Steering",
        "STEERING",
        "steer",
        "steering_",
        "sterring",
        "setering",
        "sae_steering",
        "activation_steering",
    ],
)
def test_near_misses_are_refused(key: str) -> None:
    with pytest.raises(RequestError, match="Did you mean 'steering'"):
        steering_of({key: GOOD})


@given(
    st.integers(0, 7), st.characters(codec="ascii", categories=["Ll"]), st.sampled_from(["drop", "replace", "insert"])
)
def test_any_single_typing_error_is_noticed(place: int, letter: str, how: str) -> None:
    word = "steering"
    tail = word[place:] if how == "insert" else word[place + 1 :]
    typo = word[:place] + ("" if how == "drop" else letter) + tail
    if typo != word:
        with pytest.raises(RequestError):
            steering_of({typo: GOOD})


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (
            {"\uff53\uff54\uff45\uff45\uff52\uff49\uff4e\uff47": GOOD},
            "\\uff53\\uff54\\uff45\\uff45\\uff52\\uff49\\uff4e\\uff47",
        ),
        ({"st\u0435\u0435ring": GOOD}, "st\\u0435\\u0435ring"),
        ({"s\u200btee\u200bring": GOOD}, "s\\u200btee\\u200bring"),
        ({"steering\ud800": GOOD}, "steering\\ud800"),
        ({"interventions": []}, "interventions"),
        ({"feature": "a/1"}, "feature"),
        ({"clamp": {}}, "clamp"),
        ({"saeclamp": {}}, "saeclamp"),
        ({"rules": [{"then": "abort"}]}, "rules"),
        ({"Readout": {}}, "Readout"),
        ({"Interventions": []}, "Interventions"),
        ({"extraBody": {"steering": GOOD}}, "extraBody"),
        ({"input": [{"role": "user", "content": "x", "steering": GOOD}]}, "input[0]"),
        ({"extra_body": {"steering": GOOD}}, "extra_body"),
        ({"extra_body": {"extra_body": {"steering": GOOD}}}, "extra_body"),
        ({"sampling_params": {"extra_args": {"steering": GOOD}}}, "sampling_params"),
        ({"sampling_params": {"extra_args": {"saeclamp": {"key": "k"}}}}, "sampling_params"),
        ({"chat_template_kwargs": {"steering": GOOD}}, "chat_template_kwargs"),
        ({"vllm_xargs": {"Saeclamp": "x"}}, "vllm_xargs.Saeclamp"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "user", "steering": GOOD}]}, "messages[1]"),
    ],
)
def test_steering_under_another_name_or_in_another_place_is_refused(body: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as raised:
        steering_of(body)
    assert raised.value.param == param
    str(raised.value.body()).encode()


def test_words_of_other_fields_do_not_count() -> None:
    tool = {"type": "function", "function": {"name": "car", "parameters": {"properties": {"steering": {}}}}}
    messages = [{"role": "user", "content": "the steering wheel"}]
    assert steering_of({"messages": messages, "tools": [tool], "metadata": {"steering": "on"}}) is None


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


def test_other_bodies_are_parsed_as_they_are() -> None:
    assert parse_body(b'{"a": [1, {"b": null}], "steering": {"c": 2.5}}') == {
        "a": [1, {"b": None}],
        "steering": {"c": 2.5},
    }


@pytest.mark.parametrize("content", [b'{"stop":["\\ud800"]}', b'{"a":{"\\uDFFF":1}}'])
def test_half_of_a_surrogate_pair_is_refused(content: bytes) -> None:
    with pytest.raises(RequestError, match="surrogate"):
        parse_body(content)


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
        ({}, "tokens", "an object with one of first, after, roles, positions"),
        ({"frist": 3}, "tokens", "an object with one of first, after, roles, positions"),
        (3, "tokens", "an object with one of first, after, roles, positions"),
        ({"first": 0}, "tokens.first", "greater than or equal to 1"),
        ({"first": 1, "last": 2}, "tokens.last", "unknown field 'last'. Known: first"),
        ({"roles": ["usr"]}, "tokens.roles[0]", "'user'"),
        ({"positions": [1, -1]}, "tokens.positions[1]", "greater than or equal to 0"),
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


def test_a_body_of_very_many_field_names_is_refused_before_they_are_compared() -> None:
    many = {f"key{number}": 1 for number in range(10_001)}
    for body in (many, {"extra_body": {"a": many}}, {"vllm_xargs": many}, {"messages": [many]}):
        with pytest.raises(RequestError, match="more than 10000 different field names"):
            steering_of(body)
    assert steering_of({"messages": [{"role": "user", "content": "a"}] * 20_000}) is None


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
