"""What looks like steering and is not read is refused with the right form, and nothing else is taken for it."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saeclamp.types import looks_like_steering
from saeclamp_server.api.steering_body import steering_of
from saeclamp_server.errors import RequestError

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
        ({"vllm_xargs": {"saeclamp_record": "x"}}, "vllm_xargs.saeclamp_record"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "user", "steering": GOOD}]}, "messages[1]"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "steering": GOOD}]}]}, "messages[0]"),
        ({"messages": [{"role": "user", "interventions": []}]}, "messages[0]"),
        ({"variant": "sea"}, "variant"),
        ({"variantName": "sea"}, "variantName"),
        ({"model_variant": "sea"}, "model_variant"),
        ({"steer": "sea"}, "steer"),
        ({"steering_vector": [1]}, "steering_vector"),
        ({"control_vector": "x"}, "control_vector"),
        ({"sae": "a"}, "sae"),
        ({"sae_id": 1}, "sae_id"),
        ({"features": ["a/1"]}, "features"),
        ({"feature_id": 3}, "feature_id"),
        ({"featureIndex": 3}, "featureIndex"),
        ({"feature_strengths": {"a/1": 1}}, "feature_strengths"),
        ({"clamp_features": ["a/1"]}, "clamp_features"),
        ({"clamping": {}}, "clamping"),
        ({"ablations": ["a/1"]}, "ablations"),
        ({"activation_additions": []}, "activation_additions"),
        ({"op": "clamp", "value": 1}, "op"),
        ({"vector": "v"}, "vector"),
        ({"extra_body": {"interventions": []}}, "extra_body"),
        ({"extra_body": {"op": "clamp", "feature": "a/1", "value": 1}}, "extra_body"),
        ({"extra_body": {"variant": "sea"}}, "extra_body"),
        ({"extra_body": '{"steering": {}}'}, "extra_body"),
        ({"model_kwargs": {"extra_body": {"feature": "a/1"}}}, "model_kwargs"),
        ({"providerOptions": {"saeclamp": {"steering": GOOD}}}, "providerOptions"),
        ({"whatever": {"deep": [{"steering": GOOD}]}}, "whatever"),
        ({"whatever": [{"op": "clamp", "feature": "a/1", "value": 1}]}, "whatever"),
        ({"extra_args": {"sae": "a"}}, "extra_args"),
        ({"vllm_xargs": {"feature": "a/1"}}, "vllm_xargs.feature"),
        ({"vllm_xargs": {"variant": "sea"}}, "vllm_xargs.variant"),
        ({"vllm_xargs": {"steering": "{}"}}, "vllm_xargs.steering"),
        ({"feature_overrides": {}}, "feature_overrides"),
        ({"featureOverrides": {}}, "featureOverrides"),
        ({"set_features": []}, "set_features"),
        ({"target_features": []}, "target_features"),
        ({"top_features": []}, "top_features"),
        ({"featureset": []}, "featureset"),
        ({"modelvariant": "sea"}, "modelvariant"),
        ({"use_variant": "sea"}, "use_variant"),
        ({"variant_of": "sea"}, "variant_of"),
        ({"latents": {}}, "latents"),
        ({"amplify": {}}, "amplify"),
        ({"amplification": {}}, "amplification"),
        ({"nudge": {}}, "nudge"),
        ({"persona_vector": "x"}, "persona_vector"),
        ({"conceptVectors": []}, "conceptVectors"),
        ({"act_add": {}}, "act_add"),
        ({"neurons": {}}, "neurons"),
        ({"a/golden-gate": 0.75}, "a/golden-gate"),
        ({"extra_body": {"a/golden-gate": 0.75}}, "extra_body"),
        ({"extra_body": {"extra_body": {"a/golden-gate": 0.75}}}, "extra_body.extra_body"),
        ({"vllm_xargs": {"a/golden-gate": 0.75}}, "vllm_xargs"),
        ({"messages": [{"role": "user", "content": "x", "variant": "sea"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "x", "extra_body": {"steering": GOOD}}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "x", "whatever": [{"steering": GOOD}]}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "x", "a/golden-gate": 1}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "x", "st\u0435\u0435ring": GOOD}]}, "messages[0]"),
        ({"messages": [[], [{"role": "user", "content": "x", "steering": GOOD}]]}, "messages[1]"),
        (
            {"previous_input_messages": [{"role": "user", "content": "x", "feature": "a/1"}]},
            "previous_input_messages[0]",
        ),
    ],
)
def test_steering_under_another_name_or_in_another_place_is_refused(body: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as raised:
        steering_of(body)
    assert raised.value.param == param
    str(raised.value.body()).encode()


EXAMPLE = '"steering": {"interventions": [{"op": "clamp", "feature": "<sae>/<name or index>", "value": 1}]}'


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"model": "m", "variant": "sea"}, '"model": "m:sea"'),
        ({"model": "m:other", "variant": "sea"}, '"model": "m:sea"'),
        ({"variant": {"name": "sea"}}, '"model": "<model>:<variant>"'),
        ({"model": "m", "steering": "sea"}, '"model": "m:sea"'),
        ({"model": "m", "steering": "m:sea"}, '"model": "m:sea"'),
        ({"model": "m", "steering": {"variant": "sea"}}, '"model": "m:sea"'),
        ({"steering": '{"interventions": []}'}, "not the JSON of one in a string"),
        ({"steering": "0.5 happy + 0.2 calm"}, "saklas"),
        ({"steering": GOOD["interventions"]}, f"a list goes into it as its 'interventions': {EXAMPLE}."),
        ({"steering": [{"when": {}, "apply": {}}]}, "RhizoNymph"),
        ({"steering": {"a/1": 1.0}}, EXAMPLE),
        ({"feature": "a/1"}, EXAMPLE),
        ({"steer": {"a/1": 1.0}}, EXAMPLE),
        ({"interventions": []}, EXAMPLE),
        ({"extra_body": {"steering": GOOD}}, EXAMPLE),
        ({"vllm_xargs": {"steering": "{}"}}, EXAMPLE),
    ],
)
def test_a_refusal_shows_the_right_form(body: Any, says: str) -> None:
    with pytest.raises(RequestError) as raised:
        steering_of(body)
    assert says in raised.value.message


def test_a_list_of_interventions_is_nobody_elses() -> None:
    with pytest.raises(RequestError) as raised:
        steering_of({"steering": GOOD["interventions"]})
    assert "RhizoNymph" not in raised.value.message


@pytest.mark.parametrize("field", ["input", "data", "query", "text", "prompt", "system"])
def test_steering_in_what_a_chat_has_no_field_for_is_refused(field: str) -> None:
    for value in ({"steering": GOOD}, [{"steering": GOOD}]):
        with pytest.raises(RequestError) as raised:
            steering_of({"messages": [], field: value}, "/v1/chat/completions")
        assert raised.value.param in (field, f"{field}[0]")


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": {"steering": 1, "feature": "a/1"}},
        {"role": "user", "content": [{"type": "text", "text": "steering"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"name": "f", "arguments": {"steering": 1}}}],
        },
        {"type": "apply_patch_call", "operation": {"type": "create_file", "path": "a/b"}},
        {"type": "mcp_list_tools", "tools": [{"input_schema": {"properties": {"steering": {}}}}]},
        {"role": "user", "content": "x", "weight": 1, "variant": None},
    ],
)
def test_what_a_message_holds_is_the_users(message: dict[str, Any]) -> None:
    assert steering_of({"messages": [message]}, "/v1/chat/completions") is None


@pytest.mark.parametrize(
    "key",
    [
        *("feature_flags", "featureFlags", "feature_gates", "featured", "invariant", "vector_store_ids", "vector_db"),
        *("embedding_vector", "activation_checkpointing", "adapter", "style", "strength", "preset"),
    ],
)
def test_words_of_other_things_are_left_alone(key: str) -> None:
    assert steering_of({key: "x"}) is None


def test_a_name_of_megabytes_is_refused_by_its_length() -> None:
    for body in ({"k" * 16_000_000: 1}, {"\u00e9" * 8_000_000: 1}):
        begin = time.thread_time()
        with pytest.raises(RequestError, match="The name of a field has") as raised:
            steering_of(body)
        assert time.thread_time() - begin < 0.5
        assert len(raised.value.message) < 400


@pytest.mark.parametrize("field", ["messages", "metadata", "tools", "response_format", "logit_bias", "prompt", "input"])
def test_what_users_make_up_may_hold_any_word(field: str) -> None:
    assert steering_of({field: {"steering": 1, "interventions": [], "op": "x", "feature": "y", "variant": "z"}}) is None


@pytest.mark.parametrize("field", ["controller", "feature", "variant", "sae", "vectors"])
def test_null_asks_for_nothing(field: str) -> None:
    assert steering_of({field: None, "extra_body": {field: None}}) is None


def test_words_of_other_fields_do_not_count() -> None:
    tool = {"type": "function", "function": {"name": "car", "parameters": {"properties": {"steering": {}}}}}
    messages = [{"role": "user", "content": "the steering wheel"}]
    assert steering_of({"messages": messages, "tools": [tool], "metadata": {"steering": "on"}}) is None


def test_a_body_of_very_many_field_names_is_refused_before_they_are_compared() -> None:
    many = {f"key{number}": 1 for number in range(10_001)}
    for body in (many, {"extra_body": {"a": many}}, {"vllm_xargs": many}, {"messages": [many]}):
        with pytest.raises(RequestError, match="more than 10000 different field names"):
            steering_of(body)
    assert steering_of({"messages": [{"role": "user", "content": "a"}] * 20_000}) is None
