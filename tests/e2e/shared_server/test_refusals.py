"""Whatever asks for steering and cannot get it is refused, in OpenAI's envelope, with the JSON path and what exists."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.support.refusal_table import REFUSALS, Refusal, one
from tests.support.serving import Server


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS.keys())
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_request_is_a_400_that_names_the_place(server: Server, refusal: Refusal, path: str, stream: bool) -> None:
    prompt = {"prompt": "Hi"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "Hi"}]}
    body = {"model": server.model, "max_tokens": 1, "stream": stream, **prompt, **refusal.body}
    response = server.http.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["param"] == refusal.param
    assert refusal.says in error["message"]
    assert isinstance(error["code"], str)
    assert response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions/batch", {"messages": [[{"role": "user", "content": "Hi"}]]}),
        ("/invocations", {"messages": [{"role": "user", "content": "Hi"}]}),
        ("/inference/v1/generate", {"token_ids": [5, 6], "sampling_params": {"max_tokens": 1}}),
    ],
)
def test_endpoints_that_cannot_steer_refuse_rather_than_ignore(server: Server, path: str, body: dict[str, Any]) -> None:
    response = server.post(path, **body, **one())
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "steering"
    assert server.post(path, **body, steerng={}).json()["error"]["param"] == "steerng"


def test_other_endpoints_pass_the_guard_untouched(server: Server) -> None:
    response = server.post("/tokenize", prompt="Hello there")
    assert response.status_code == 200
    assert response.json()["count"] == 2


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/responses"])
def test_steering_that_is_switched_off_by_a_second_one_is_refused(server: Server, path: str) -> None:
    body = json.dumps({"model": server.model, "prompt": "Hi", "input": "Hi", **one()})[:-1] + ', "steering": null}'
    response = server.http.post(path, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert "twice" in response.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"])
@pytest.mark.parametrize(
    ("more", "query", "headers"),
    [
        ('"model": "{0}:golden-gate", "model": "{0}"', "", {}),
        ('"golden-gate": 0.75', "", {}),
        ('"bundled/golden-gate": 0.75', "", {}),
        ('"preset": "{0}:golden-gate"', "", {}),
        ('"extra_body": {{"model": "{0}:golden-gate"}}', "", {}),
        ('"data": {{"steering": {{}}}}', "", {}),
        ('"messages": [{{"role": "user", "content": "Hi", "model": "{0}:golden-gate"}}]', "", {}),
        ('"n": 1', "?model={0}:golden-gate", {}),
        ('"n": 1', "?golden-gate=0.75", {}),
        ('"n": 1', "", {"X-Steering": "golden-gate"}),
    ],
)
def test_steering_that_is_asked_for_where_nobody_reads_it_is_refused(
    server: Server, path: str, more: str, query: str, headers: dict[str, str]
) -> None:
    fields = {"model": server.model, "max_tokens": 1, "prompt": "Hi", "input": "Hi"}
    if '"messages"' not in more:
        fields["messages"] = [{"role": "user", "content": "Hi"}]
    kept = {name: value for name, value in fields.items() if f'"{name}"' not in more or name == "model"}
    content = f"{json.dumps(kept)[:-1]}, {more.format(server.model)}}}"
    if '"model": "{0}:golden-gate", "model"' in more:
        content = content.replace(f'"model": "{server.model}", ', "", 1)
    url = path + query.format(server.model)
    response = server.http.post(url, content=content, headers={"Content-Type": "application/json", **headers})
    assert response.status_code == 400, response.text


def test_a_larger_body_than_the_server_takes_is_refused(server: Server) -> None:
    response = server.post("/v1/completions", prompt="x" * (17 << 20))
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"


@pytest.mark.parametrize("prompt", [[], "", [[]]])
def test_an_empty_prompt_is_refused_as_vllm_refuses_it(server: Server, prompt: Any) -> None:
    response = server.post("/v1/completions", prompt=prompt, **one())
    assert response.status_code == 400
    assert response.json()["error"]["message"]


def test_the_frameworks_own_errors_are_in_the_envelope(server: Server) -> None:
    deep = b'{"a":' * 5000 + b"1" + b"}" * 5000
    bad = server.http.post("/v1/completions", content=deep, headers={"Content-Type": "application/json"})
    wrong_method = server.http.put("/v1/completions", json={})
    assert (bad.status_code, wrong_method.status_code) == (400, 405)
    assert all(response.json()["error"]["message"] for response in (bad, wrong_method))


def test_a_body_that_is_not_json_is_a_400(server: Server) -> None:
    for content in ("{", "[]", '"x"'):
        response = server.http.post(
            "/v1/chat/completions", content=content, headers={"Content-Type": "application/json"}
        )
        assert response.status_code == 400
        assert response.json()["error"]["message"]


def test_a_refused_request_leaves_the_server_as_it_was(server: Server) -> None:
    before = server.complete("The capital of France is")["choices"][0]["text"]
    server.post("/v1/completions", prompt="The capital of France is", **one(feature="bundled/9999999", unit="act"))
    assert server.complete("The capital of France is")["choices"][0]["text"] == before


@pytest.mark.parametrize(
    ("path", "more", "param"),
    [
        ("/v1/completions", {"prompt": "Hi"}, "steering.interventions[0].tokens.roles"),
        ("/v1/chat/completions", {"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}] * 257}, "messages"),
    ],
)
def test_roles_are_refused_where_they_cannot_be_found(
    server: Server, path: str, more: dict[str, Any], param: str
) -> None:
    prompt = {"messages": [{"role": "user", "content": "Hi"}]} if "chat" in path else {}
    response = server.post(path, **(prompt | more), **one(tokens={"roles": ["user"]}))
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": "x", "echo": True, "steering": {"readout": {"top_k": 1}}}, "echo"),
        ("/v1/completions", {"prompt": [[100]] * 1024, "n": 5, **one()}, "n"),
        ("/v1/features/inspect", {"messages": [{"role": "user", "content": [1]}]}, None),
        ("/v1/features/inspect", {"messages": [{"role": "user", "content": [None, ["a"]]}]}, None),
    ],
)
def test_what_is_refused_says_why(server: Server, path: str, body: dict[str, Any], param: str | None) -> None:
    response = server.http.post(path, json={"model": server.model, **body} if "completions" in path else body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["message"]
    assert param is None or response.json()["error"]["param"] == param


def test_however_deep_a_body_is_it_is_answered(server: Server) -> None:
    for depth in range(900, 1000, 3):
        content = b'{"model":"x","prompt":"x","extra_body":' + b'{"a":' * depth + b"1" + b"}" * depth + b"}"
        response = server.http.post("/v1/completions", content=content, headers={"Content-Type": "application/json"})
        assert response.status_code in (400, 404), (depth, response.text)


def test_scattered_positions_are_compared_at_once(server: Server) -> None:
    def positions(first: int, count: int) -> dict[str, Any]:
        return {"positions": [*range(first, first + 2 * count, 2)]}

    moves = [
        {"op": "clamp", "feature": "bundled/54", "value": 0.1, "tokens": positions(first, 1000)} for first in (1, 2)
    ]
    answer = server.http.post("/v1/steering/validate", json={"steering": {"interventions": moves}})
    assert answer.status_code == 200, answer.text
    assert answer.elapsed.total_seconds() < 5  # all pairs of ranges for each length of the prompt took minutes
    more = [
        {"op": "clamp", "feature": f"bundled/{n}", "value": 0.01, "tokens": positions(n + 1, 1000)} for n in range(3)
    ]
    refused = server.http.post("/v1/steering/validate", json={"steering": {"interventions": more}})
    assert (refused.status_code, "3000 separate ranges" in refused.json()["error"]["message"]) == (400, True)
