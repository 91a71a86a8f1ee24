"""What looks like steering and is not read is refused with the right form, and nothing else is taken for it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from saeclamp.types import looks_like_steering
from saeclamp_server.errors import RequestError
from saeclamp_server.request_body import steering_of

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


OPENAI = """
    audio background best_of conversation frequency_penalty function_call functions include input instructions logit_bias
    logprobs max_completion_tokens max_output_tokens max_tokens max_tool_calls messages metadata modalities model moderation
    n parallel_tool_calls prediction presence_penalty previous_response_id prompt prompt_cache_key prompt_cache_retention
    reasoning reasoning_effort response_format safety_identifier seed service_tier stop store stream stream_options suffix
    temperature text tool_choice tools top_logprobs top_p truncation user verbosity web_search_options context_management
    system thinking container mcp_servers stop_sequences top_k output_config betas dimensions encoding_format speed
    transforms models route provider plugins usage guided_json guided_regex keep_alive options think raw images template
    fallbacks cache num_retries timeout api_base drop_params mirostat typical_p grammar json_schema slot_id cache_prompt
    vector_store_ids feature_flags layers extra_headers enable_thinking activation_checkpointing rules_engine
"""


def vllm_fields() -> set[str]:
    """Fields of every request class of vLLM's servers that generate, embed, score or count."""
    from vllm.entrypoints.anthropic import protocol as anthropic
    from vllm.entrypoints.openai.chat_completion import protocol as chat
    from vllm.entrypoints.openai.completion import protocol as completion
    from vllm.entrypoints.openai.responses import protocol as responses
    from vllm.entrypoints.serve.tokenize import protocol as tokenize

    kinds = [
        kind
        for module in (anthropic, chat, completion, responses, tokenize)
        for name, kind in vars(module).items()
        if name.endswith("Request") and isinstance(kind, type) and issubclass(kind, BaseModel)
    ]
    assert len(kinds) >= 6
    return {field for kind in kinds for field in kind.model_fields}


def test_no_field_of_vllms_or_openais_is_taken_for_steering() -> None:
    fields = {*vllm_fields(), *OPENAI.split()} - {"steering"}
    assert len(fields) > 120
    for field in fields:
        steering_of({field: {"a": 1, "b": [{"c": "d"}]}})
        steering_of({field: "steering"})


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
