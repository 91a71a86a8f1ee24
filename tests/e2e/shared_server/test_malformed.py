"""What vLLM cannot do is a 400 that names the field, before any answer begins: streamed or not, steered or not."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from tests.support.bundled import ACT
from tests.support.serving import Server

CLAMP = {"interventions": [{"op": "clamp", "feature": "bundled/golden-gate", "value": ACT, "unit": "act"}]}
CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": "Hi", "max_tokens": 3},
    "/v1/responses": {"input": "Hi", "max_output_tokens": 3},
    "/v1/messages": CHAT,
}
LONG = "word " * 5000


def schema(content: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": content}}


OPENAIS = ("/v1/chat/completions", "/v1/completions")
GENERATING = (*OPENAIS, "/v1/responses")
WRONG: list[tuple[tuple[str, ...], dict[str, Any], str]] = [
    (OPENAIS, {"logit_bias": {"99999999": 1}}, "logit_bias"),
    (OPENAIS, {"logit_bias": {"-5": 1}}, "logit_bias"),
    (OPENAIS, {"stop_token_ids": [10**7]}, "stop_token_ids"),
    (OPENAIS, {"stop_token_ids": [10**30]}, "stop_token_ids"),
    (OPENAIS, {"allowed_token_ids": []}, "allowed_token_ids"),
    (OPENAIS, {"allowed_token_ids": [10**7]}, "allowed_token_ids"),
    (OPENAIS, {"bad_words": [""]}, "bad_words"),
    (OPENAIS, {"structured_outputs": 5}, "structured_outputs"),
    (OPENAIS, {"structured_outputs": ["a"]}, "structured_outputs"),
    (OPENAIS, {"min_tokens": 100}, "min_tokens"),
    (OPENAIS, {"prompt_logprobs": 1000}, "prompt_logprobs"),
    (OPENAIS, {"thinking_token_budget": 5}, "thinking_token_budget"),
    (OPENAIS, {"response_format": schema({"type": "nosuch"})}, "response_format"),
    (OPENAIS, {"response_format": schema({"$ref": "#/$defs/nosuch"})}, "response_format"),
    # only one of vLLM's libraries refuses this; the engine may run on the other
    (OPENAIS, {"response_format": schema({"properties": {"a": {"enum": []}}})}, "response_format"),
    (GENERATING, {"structured_outputs": {"grammar": "root ::= ((("}}, "structured_outputs"),
    (GENERATING, {"structured_outputs": {"regex": "((("}}, "structured_outputs"),
    (GENERATING, {"structured_outputs": {"json": {"type": "nosuch"}}}, "structured_outputs"),
    (("/v1/responses",), {"text": {"format": {**schema(0), "name": "a", "schema": {"type": "nosuch"}}}}, "text"),
    (("/v1/messages",), {"output_config": {"format": {**schema(0), "schema": {"type": "nosuch"}}}}, "output_config"),
    (("/v1/chat/completions",), {"logprobs": True, "top_logprobs": 1000}, "top_logprobs"),
    (("/v1/completions",), {"logprobs": 1000}, "logprobs"),
    (tuple(BODIES), {"top_k": 10**30}, "top_k"),
    (("/v1/chat/completions", "/v1/messages"), {"messages": [{"role": "user", "content": LONG}]}, "messages"),
    (("/v1/chat/completions", "/v1/messages"), {"messages": []}, "messages"),
    (("/v1/completions",), {"prompt": LONG}, "prompt"),
    (("/v1/completions",), {"prompt": [10**7]}, "prompt"),
    (("/v1/responses",), {"input": LONG}, "input"),
    (("/v1/chat/completions",), {"tools": [{"type": "function"}]}, "tools[0].function"),
    (("/v1/messages",), {"tools": [{"name": "a"}]}, "tools[0].input_schema"),
    (("/v1/responses",), {"tools": [{"type": "function"}]}, "tools[0]"),
    (("/v1/chat/completions",), {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages"),
]
CASES = [(path, body, param) for paths, body, param in WRONG for path in paths]


@pytest.mark.parametrize(("path", "body", "param"), CASES)
def test_what_vllm_refuses_is_a_400_that_names_the_field_before_a_stream_opens(
    server: Server, path: str, body: dict[str, Any], param: str
) -> None:
    for stream in (False, True):
        for steering in ({}, {"steering": CLAMP}):
            response = server.post(path, **BODIES[path] | body | steering, stream=stream)
            assert response.status_code == 400, (stream, steering, response.text)
            error = response.json()["error"]
            assert error["message"]
            assert error["type"] == "invalid_request_error"
            if "tools[" in param:
                assert error["param"].startswith(param)
            else:
                assert error["param"] == param, error


def test_after_all_of_them_the_server_answers_as_before(server: Server) -> None:
    for path, body in BODIES.items():
        assert server.post(path, **body, steering=CLAMP).status_code == 200


@pytest.mark.parametrize(
    "constraint",
    [{"regex": "(yes|no)"}, {"choice": ["yes", "no"]}, {"json": {"type": "boolean"}}, {"grammar": 'root ::= "yes"'}],
)
def test_good_constraints_still_hold(server: Server, constraint: dict[str, Any]) -> None:
    body = {**CHAT, "structured_outputs": constraint, "temperature": 0, "steering": CLAMP}
    answer = server.post("/v1/chat/completions", **body).json()
    assert answer["choices"][0]["message"]["content"] in ("yes", "no", "true", "false")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "kind"),
    [
        ("POST", "/v1/messages", {**CHAT, "model": "nosuch"}, 404, "not_found_error"),
        ("POST", "/v1/messages", {**CHAT, "model": "smollm2-135m-instruct:nosuch"}, 404, "not_found_error"),
        ("POST", "/v1/messages", {"messages": 5}, 400, "invalid_request_error"),
        ("POST", "/v1/messages", {**CHAT, "steering": "sea"}, 400, "invalid_request_error"),
        ("POST", "/v1/messages", {**CHAT, "variant": "sea"}, 400, "invalid_request_error"),
        ("POST", "/v1/messages", {**CHAT, "max_tokens": 0}, 400, "invalid_request_error"),
        ("POST", "/v1/messages/count_tokens", {**CHAT, "steering": CLAMP}, 400, "invalid_request_error"),
        ("POST", "/v1/messages/nosuch", {}, 404, "not_found_error"),
        ("PUT", "/v1/messages", {}, 405, "invalid_request_error"),
    ],
)
def test_messages_answers_errors_as_anthropic_does(
    server: Server, method: str, path: str, body: dict[str, Any], status: int, kind: str
) -> None:
    response = server.http.request(method, path, json=body)
    assert response.status_code == status, response.text
    error = response.json()
    assert (error["type"], error["error"]["type"]) == ("error", kind)
    assert error["error"]["message"]
    assert error["request_id"] == response.headers["x-request-id"]


RAW = [
    (b'{"temperature": NaN}', "temperature"),
    (b'{"temperature": 1e999}', "temperature"),
    (b'{"max_tokens": ' + b"9" * 5000 + b"}", None),
    (b'{"metadata": ' + b"[" * 3000 + b"]" * 3000 + b"}", None),
    (b'{"user": "\\ud800"}', None),
    (b"null", None),
    (b"", None),
    (b"{", None),
]


@pytest.mark.parametrize(("content", "param"), RAW)
@pytest.mark.parametrize("path", [*BODIES, "/v1/features/inspect", "/v1/steering/validate", "/tokenize"])
def test_what_is_hardly_json_is_a_400_everywhere(server: Server, path: str, content: bytes, param: str | None) -> None:
    if content.endswith(b"}") and path in BODIES:
        content = json.dumps({"model": server.model, **BODIES[path]}).encode()[:-1] + b"," + content[1:]
    response = server.http.post(path, content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["message"]
    if path in BODIES:
        assert response.json()["error"]["param"] == param


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", BODIES)
def test_headers_and_the_trace_prove_steering_to_who_sees_no_body(server: Server, path: str, stream: bool) -> None:
    response = server.post(path, **BODIES[path], steering=CLAMP, stream=stream)
    assert response.status_code == 200, response.text
    (line,) = trace(server, response)
    assert line["receipt"]["spec"] == line["spec"] == response.headers["x-saeclamp-spec"]
    assert (line["status"], line["path"], line["model"], line["error"]) == ("answered", path, server.model, None)
    assert line["id"] in response.text
    (tokens,) = [item["tokens"] for item in line["receipt"]["interventions"]]
    if stream:
        assert "x-saeclamp-edited-tokens" not in response.headers
    else:
        assert response.headers["x-saeclamp-edited-tokens"] == str(tokens["prompt"] + tokens["generated"])
        assert line["receipt"] == response.json()["steering"]


@pytest.mark.parametrize("path", BODIES)
def test_an_unsteered_answer_proves_nothing_and_leaves_no_trace(server: Server, path: str) -> None:
    response = server.post(path, **BODIES[path])
    assert not [name for name in response.headers if name.startswith("x-saeclamp")]
    assert trace(server, response) == []


@pytest.mark.parametrize("path", BODIES)
def test_what_vllm_refuses_is_in_the_trace_with_its_reason(server: Server, path: str) -> None:
    response = server.post(path, **BODIES[path], steering=CLAMP, stream=True, top_k=10**30)
    (line,) = trace(server, response)
    assert (line["status"], line["receipt"]) == ("failed", None)
    assert "top_k" in line["error"]


def test_a_client_that_hangs_up_is_in_the_trace_as_aborted(server: Server) -> None:
    body = {**CHAT, "max_tokens": 1000, "model": server.model, "steering": CLAMP, "ignore_eos": True}
    with pytest.raises(httpx.ReadTimeout):
        server.http.post("/v1/chat/completions", json=body, timeout=1, headers={"x-request-id": "hangs-up"})
    assert [line["status"] for line in server.trace_of("hangs-up")] == ["aborted"]


def trace(server: Server, response: httpx.Response) -> list[dict[str, Any]]:
    """Lines on an answer."""
    return server.trace_of(response.headers["x-request-id"])


BOMB = {"regex": "(a|aa|aaa|b?c?d?e?){1,200}" * 20}
"""Of which each token takes minutes."""


@pytest.mark.parametrize(
    ("path", "steering"), [(GENERATING[0], {}), (GENERATING[1], {"steering": CLAMP}), (GENERATING[2], {})]
)
def test_a_grammar_that_would_hold_up_others_is_refused_and_holds_up_nobody(
    server: Server, path: str, steering: dict[str, Any]
) -> None:
    body = {**BODIES[path], "structured_outputs": BOMB, **steering}
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(server.post, path, **body)
        while not waiting.done():
            assert server.post(path, **BODIES[path]).status_code == 200
        refused = waiting.result()
    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["param"] == "structured_outputs"
    assert "too slow" in refused.json()["error"]["message"]


def test_a_stream_whose_grammar_is_refused_ends_with_an_error(server: Server) -> None:
    response = server.post(
        "/v1/completions", **{**BODIES["/v1/completions"], "structured_outputs": BOMB, "stream": True}
    )
    error = json.loads(response.text.split("data: ")[1])["error"]
    assert "too slow" in error["message"]
    assert error["param"] == "structured_outputs"
