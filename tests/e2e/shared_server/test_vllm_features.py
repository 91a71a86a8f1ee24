"""What vLLM offers keeps working with steering, streamed and not."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from tests.support.bundled import GOLDEN_GATE, LAYER, MAX_ACT, STRENGTH
from tests.support.serving import Server
from tests.support.streaming import chunks

STEERING = {"interventions": [{"op": "clamp", "feature": "bundled/golden-gate", "value": STRENGTH}]}
CHAT: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Why is the sky blue?"}],
    "temperature": 0,
    "repetition_penalty": 1.1,
    "max_tokens": 30,
}


def chat(server: Server, **params: Any) -> dict[str, Any]:
    response = server.post("/v1/chat/completions", **{**CHAT, **params})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def text_of(body: dict[str, Any]) -> str:
    content: str = body["choices"][0]["message"]["content"]
    return content


def test_the_feature_takes_the_answer_over_and_only_where_it_was_asked_for(server: Server) -> None:
    plain, steered = chat(server), chat(server, steering=STEERING)
    assert "Golden Gate Bridge" in text_of(steered)
    assert "Golden" not in text_of(plain)
    assert "steering" not in plain
    # by then the prompt is cached
    theirs = {"id": 0, "created": 0, "usage": 0}
    assert chat(server, steering=None) | theirs == plain | theirs


def test_the_receipt_says_what_was_resolved_and_applied(server: Server) -> None:
    body = chat(server, steering=STEERING)
    receipt = body["steering"]
    (intervention,) = receipt["interventions"]
    assert receipt["applied"] is True
    assert receipt["spec"].startswith("sha256:")
    assert receipt["model"] == server.model
    assert receipt["sae"].keys() == {"bundled"}
    assert (intervention["index"], intervention["layer"], intervention["name"]) == (GOLDEN_GATE, LAYER, "golden-gate")
    assert intervention["value_act"] == pytest.approx(STRENGTH * MAX_ACT)
    # of the 36 prompt tokens position 0 is one of five special ones; the last new token is never fed back
    assert intervention["tokens"] == {"prompt": 31, "generated": 29, "sinks": 0}
    assert 0 <= intervention["act_before"]["mean"] <= intervention["act_before"]["max"]
    assert 0.1 < intervention["dose"]["mean"] < intervention["dose"]["max"] < 1
    assert receipt["warnings"] == []


def test_a_receipt_can_be_declined(server: Server) -> None:
    body = chat(server, steering={**STEERING, "receipt": "none"})
    assert "Golden Gate" in text_of(body)
    assert "steering" not in body


def test_an_intervention_that_touches_nothing_is_warned_of(server: Server) -> None:
    only_generated = {"interventions": [{**STEERING["interventions"][0], "tokens": "generated"}]}
    body = chat(server, steering=only_generated, max_tokens=1)
    assert body["steering"]["warnings"] == ["interventions[0] touched no token."]


@pytest.mark.parametrize("include_usage", [False, True])
def test_a_stream_is_the_same_answer_with_the_receipt_in_its_last_chunk(server: Server, include_usage: bool) -> None:
    whole = chat(server, steering=STEERING)
    options = {"stream_options": {"include_usage": True}} if include_usage else {}
    received = chunks(server.post("/v1/chat/completions", **CHAT, steering=STEERING, stream=True, **options))
    streamed = "".join(choice["delta"].get("content") or "" for chunk in received for choice in chunk["choices"])
    assert streamed == text_of(whole)
    assert ["steering" in chunk for chunk in received].count(True) == 1
    assert received[-1]["steering"]["spec"] == whole["steering"]["spec"]
    assert (received[-1].get("usage") is not None) == include_usage
    assert len(received) > 20, "tokens must arrive one by one"


def test_an_unsteered_stream_has_no_receipt(server: Server) -> None:
    assert all("steering" not in chunk for chunk in chunks(server.post("/v1/chat/completions", **CHAT, stream=True)))


def test_logprobs_are_those_of_the_steered_model(server: Server) -> None:
    body = chat(server, steering=STEERING, logprobs=True, top_logprobs=2, max_tokens=6)
    content = body["choices"][0]["logprobs"]["content"]
    assert "".join(entry["token"] for entry in content) == text_of(body)
    assert all(len(entry["top_logprobs"]) == 2 for entry in content)


def test_stop_strings_end_a_steered_answer(server: Server) -> None:
    body = chat(server, steering=STEERING, stop=["Bridge"])
    assert text_of(body).endswith("Golden Gate ")
    assert (body["choices"][0]["finish_reason"], body["choices"][0]["stop_reason"]) == ("stop", "Bridge")


def test_structured_output_stays_structured(server: Server) -> None:
    schema = {
        "type": "object",
        "properties": {"place": {"type": "string", "maxLength": 30}},
        "required": ["place"],
        "additionalProperties": False,
    }
    response_format = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema}}
    # the grammar allows any number of blanks, and a model so small and clamped so hard goes on with them
    little = {"interventions": [{**STEERING["interventions"][0], "value": 0.7 * STRENGTH}]}
    body = chat(server, steering=little, response_format=response_format, max_tokens=60)
    assert isinstance(json.loads(text_of(body))["place"], str)
    assert body["steering"]["applied"] is True


def test_a_named_tool_is_called(server: Server) -> None:
    function = {
        "name": "visit",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["days"],
            "additionalProperties": False,
        },
    }
    choice = {"type": "function", "function": {"name": "visit"}}
    tools = [{"type": "function", "function": function}]
    body = chat(server, steering=STEERING, tools=tools, tool_choice=choice, max_tokens=60)
    (call,) = body["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "visit"
    assert json.loads(call["function"]["arguments"])["days"] in range(1, 10)
    assert body["steering"]["applied"] is True


def test_several_choices_of_a_chat_are_all_steered(server: Server) -> None:
    body = chat(server, steering=STEERING, n=3, temperature=0.2, seed=1)
    assert all("Golden" in choice["message"]["content"] for choice in body["choices"])
    assert body["steering"]["interventions"][0]["tokens"]["prompt"] == 3 * 31


def test_echoed_prompts_without_new_tokens_are_steered(server: Server) -> None:
    body = server.complete("The sky is", STEERING["interventions"], max_tokens=0, echo=True, logprobs=0)
    plain = server.complete("The sky is", max_tokens=0, echo=True, logprobs=0)
    assert body["choices"][0]["text"] == plain["choices"][0]["text"] == "The sky is"
    assert body["choices"][0]["logprobs"]["token_logprobs"] != plain["choices"][0]["logprobs"]["token_logprobs"]


def test_a_vllm_error_keeps_its_status_and_envelope(server: Server) -> None:
    response = server.post("/v1/chat/completions", **{**CHAT, "max_tokens": 10**6}, steering=STEERING)
    assert response.status_code == 400
    assert response.json()["error"]["message"]
    unknown = server.http.post("/v1/chat/completions", json={**CHAT, "model": "nobody", "steering": STEERING})
    assert unknown.status_code == 404


def test_a_client_that_leaves_does_not_disturb_the_next(server: Server) -> None:
    with server.http.stream(
        "POST",
        "/v1/chat/completions",
        json={
            **CHAT,
            "model": server.model,
            "max_tokens": 500,
            "ignore_eos": True,
            "stream": True,
            "steering": STEERING,
        },
    ) as response:
        next(response.iter_lines())
    assert "Golden Gate Bridge" in text_of(chat(server, steering=STEERING))


def test_the_port_of_metrics_alone_has_the_engine_s_and_ours_and_nothing_else(server: Server) -> None:
    steered = chat(server, steering=STEERING)
    assert steered["steering"]["applied"]
    own = f"http://127.0.0.1:{server.metrics_port}"
    text = httpx.get(f"{own}/metrics").text
    for name in ("vllm:num_requests_waiting{", "vllm:kv_cache_usage_perc{", "saeclamp_features_in_use "):
        assert f"\n{name}" in text, text
    for path in ("/v1/models", "/health"):
        assert "tokenizer" not in (answer := httpx.get(f"{own}{path}")).text
        assert not answer.headers["Content-Type"].startswith("application/json")
