"""Steering on `/v1/responses` and `/v1/messages`: what chat completions say, with the same receipt, or an error."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import httpx
import openai
import pytest
from tests.support.bundled import ACT, GOLDEN_GATE
from tests.support.serving import Server

QUESTION = "What should I cook for dinner tonight?"
CLAMP = {"interventions": [{"op": "clamp", "feature": "bundled/golden-gate", "value": ACT, "unit": "act"}]}
PRESET = "golden-gate"
BODIES: dict[str, dict[str, Any]] = {
    "/v1/responses": {"input": QUESTION, "max_output_tokens": 12, "temperature": 0},
    "/v1/messages": {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 12, "temperature": 0},
}


@pytest.fixture(scope="module")
def expected(server: Server) -> dict[str, Any]:
    """What a chat completion makes of the same question, steered."""
    chat = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 12, "temperature": 0}
    answer = server.post("/v1/chat/completions", **chat, steering=CLAMP).json()
    plain = server.post("/v1/chat/completions", **chat).json()
    assert answer["choices"][0]["message"]["content"] != plain["choices"][0]["message"]["content"]
    return {
        "text": answer["choices"][0]["message"]["content"],
        "plain": plain["choices"][0]["message"]["content"],
        "receipt": answer["steering"],
    }


def text_of(path: str, body: dict[str, Any]) -> str:
    if path == "/v1/messages":
        return "".join(part["text"] for part in body["content"])
    return "".join(part["text"] for item in body["output"] for part in item.get("content") or ())


def events(response: Any) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


def figures(server: Server) -> dict[str, float]:
    """What of the server's figures a call leaves as it was, if it was neither answered nor refused."""
    names = "saeclamp_failures_total|saeclamp_requests_total|saeclamp_features_in_use|vllm:num_requests_running"
    found = re.findall(rf"^({names})(?:\{{.*\}})? (\S+)$", server.http.get("/metrics").text, re.MULTILINE)
    return {name: float(value) for name, value in found}


@pytest.mark.parametrize("path", BODIES)
def test_an_answer_is_steered_and_says_so(server: Server, expected: dict[str, Any], path: str) -> None:
    response = server.post(path, **BODIES[path], steering=CLAMP)
    assert response.status_code == 200, response.text
    body = response.json()
    assert text_of(path, body) == expected["text"]
    assert body["model"] == server.model
    assert body["steering"]["spec"] == expected["receipt"]["spec"]
    assert body["steering"]["interventions"][0]["tokens"] == expected["receipt"]["interventions"][0]["tokens"]
    plain = server.post(path, **BODIES[path]).json()
    assert text_of(path, plain) == expected["plain"]
    assert "steering" not in plain


@pytest.mark.parametrize("path", BODIES)
def test_a_stream_is_steered_and_its_last_event_says_so(server: Server, expected: dict[str, Any], path: str) -> None:
    response = server.post(path, **BODIES[path], steering=CLAMP, stream=True)
    assert response.status_code == 200, response.text
    told = events(response)
    if path == "/v1/messages":
        text = "".join(event["delta"].get("text", "") for event in told if event["type"] == "content_block_delta")
        receipt = next(event for event in told if event["type"] == "message_stop")["steering"]
    else:
        text = "".join(event["delta"] for event in told if event["type"] == "response.output_text.delta")
        last = next(event for event in told if event["type"] in ("response.completed", "response.incomplete"))
        receipt = last["response"]["steering"]
    assert text == expected["text"]
    assert receipt["spec"] == expected["receipt"]["spec"]


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [False, True])
def test_a_variants_name_alone_steers(server: Server, path: str, stream: bool) -> None:
    model = f"{server.model}:{PRESET}"
    response = server.http.post(path, json={"model": model, **BODIES[path], "stream": stream})
    assert response.status_code == 200, response.text
    told = events(response) if stream else [response.json()]
    named = [
        part["model"]
        for body in told
        for part in (body, body.get("response"), body.get("message"))
        if part and "model" in part
    ]
    assert set(named) == {model}
    assert f"{model}@" in json.dumps(told)
    assert f"bundled/{PRESET}" in json.dumps(told)


def test_openais_client_reads_a_steered_response(server: Server, expected: dict[str, Any]) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    answer = client.responses.create(model=server.model, extra_body={"steering": CLAMP}, **BODIES["/v1/responses"])
    assert answer.output_text == expected["text"]
    assert answer.steering["interventions"][0]["index"] == GOLDEN_GATE  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"steering": {"readout": {"top_k": 1}}}, "steering", "readouts"),
        ({"steering": {**CLAMP, "receipt": "tokens"}}, "steering", "receipts of tokens"),
        (
            {"steering": {"rules": [{"name": "r", "when": {"feature": "bundled/54", "above": 1}, "then": "abort"}]}},
            "steering",
            "rules that abort",
        ),
        (
            {"steering": {"interventions": [{"op": "ablate", "feature": "bundled/54", "tokens": {"roles": ["user"]}}]}},
            "steering.interventions[0].tokens.roles",
            "Only the messages of a chat",
        ),
        ({"steering": {"interventions": [{"op": "clmp"}]}}, "steering.interventions[0]", "Did you mean"),
        ({"steerng": CLAMP}, "steerng", "Did you mean 'steering'"),
        ({"steering": CLAMP, "background": True}, "background", "background"),
    ],
)
def test_what_has_no_place_there_is_refused(
    server: Server, path: str, body: dict[str, Any], param: str, says: str
) -> None:
    response = server.post(path, **BODIES[path], **body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert says in response.json()["error"]["message"]


@pytest.mark.parametrize("more", [{"instructions": "data: hello"}, {"metadata": {"k": "data: y\n\ndata: z"}}])
def test_what_looks_like_the_end_of_an_event_is_text(server: Server, more: dict[str, Any]) -> None:
    body = {**BODIES["/v1/responses"], **more, "steering": CLAMP, "stream": True}
    # an answer that is as long as it may be is incomplete since vLLM 0.33
    ends = ("response.completed", "response.incomplete")
    (last,) = [event for event in events(server.post("/v1/responses", **body)) if event["type"] in ends]
    assert last["response"]["steering"]["interventions"][0]["index"] == GOLDEN_GATE


@pytest.mark.parametrize("path", [*BODIES, "/v1/chat/completions"])
def test_a_client_that_hangs_up_is_no_failure_of_steering(server: Server, path: str) -> None:
    body = {**BODIES.get(path, BODIES["/v1/messages"]), "steering": CLAMP}
    body[next(name for name in body if name.startswith("max_"))] = 1000
    before = figures(server)
    with pytest.raises(httpx.ReadTimeout):
        server.http.post(path, json={"model": server.model, **body}, timeout=2)
    deadline = time.monotonic() + 30
    while (now := figures(server))["vllm:num_requests_running"] or now["saeclamp_features_in_use"]:
        assert time.monotonic() < deadline, now
        time.sleep(0.2)
    assert now == before


@pytest.mark.parametrize("path", ["/invocations", "/v1/embeddings"])
def test_no_other_endpoint_answers_for_a_variant_with_its_base(server: Server, path: str) -> None:
    body = {"messages": [{"role": "user", "content": QUESTION}], "input": QUESTION, "max_tokens": 4}
    refused = server.post(path, **body, model=f"{server.model}:{PRESET}")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model"), refused.text
    assert server.post(path, **body, model=f"{server.model}:nosuch").status_code == 404


@pytest.mark.parametrize("path", BODIES)
def test_what_vllm_refuses_is_refused_as_ever(server: Server, path: str) -> None:
    body = {name: value for name, value in BODIES[path].items() if name not in ("input", "messages")}
    response = server.post(path, **body, steering=CLAMP)
    assert response.status_code in (400, 422), response.text
    assert "steering" not in response.json()
    # nothing is left behind of it
    assert server.post(path, **BODIES[path], steering=CLAMP).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"prompt": QUESTION}),
        ("/detokenize", {"tokens": [504, 253]}),
        ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": QUESTION}]}),
    ],
)
def test_tokens_are_counted_for_a_variant_as_for_its_base(server: Server, path: str, body: dict[str, Any]) -> None:
    counted = [server.post(path, **(body | model)) for model in ({}, {"model": f"{server.model}:{PRESET}"})]
    assert [response.status_code for response in counted] == [200, 200], counted[1].text
    assert counted[0].json() == counted[1].json()
    unknown = server.post(path, **body | {"model": f"{server.model}:golden-gat"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    assert PRESET in unknown.json()["error"]["message"]
