"""Whatever asks for steering and cannot get it is refused, in OpenAI's envelope, with the JSON path and what exists."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest
from tests.bundled import D_SAE, GOLDEN_GATE, STRENGTH
from tests.e2e.serving import Server

GOOD = {"op": "clamp", "feature": "bundled/golden-gate", "value": STRENGTH}


class Refusal(NamedTuple):
    body: dict[str, Any]
    param: str
    says: str


def steering(*interventions: Any, **more: Any) -> dict[str, Any]:
    return {"steering": {"interventions": list(interventions), **more}}


def one(**changes: Any) -> dict[str, Any]:
    return steering({**GOOD, **changes})


def ruled(when: Any = None, **changes: Any) -> dict[str, Any]:
    when = {"feature": "bundled/5", "above": 1, "unit": "act"} if when is None else when
    return {"steering": {"rules": [{"name": "a", "when": when, "then": "abort", **changes}]}}


REFUSALS = {
    "unknown field of steering": Refusal(steering(GOOD, intervention=1), "steering.intervention", "unknown field"),
    "unknown field of an intervention": Refusal(one(valeu=1), "steering.interventions[0].valeu", "'value'"),
    "in the second intervention": Refusal(
        steering(GOOD, {**GOOD, "feature": "bundled/5", "layer": 3}), "steering.interventions[1].layer", "unknown field"
    ),
    "missing operation": Refusal(
        steering({"feature": "bundled/5", "value": 1}),
        "steering.interventions[0]",
        "'op' is missing: clamp, add, at_least, at_most, scale, ablate",
    ),
    "missing value": Refusal(
        steering({"op": "clamp", "feature": "bundled/5"}), "steering.interventions[0].value", "required"
    ),
    "no interventions": Refusal(steering(), "steering", "'interventions', 'rules' or 'readout'"),
    "too many interventions": Refusal(steering(*[GOOD] * 65), "steering.interventions", "at most 64"),
    "unknown SAE": Refusal(one(feature="elsewhere/5"), "steering.interventions[0].feature", "Loaded: bundled, second"),
    "unknown feature": Refusal(one(feature="bundled/golden-gat"), "steering.interventions[0].feature", "golden-gate"),
    "index out of range": Refusal(
        one(feature=f"bundled/{D_SAE}"), "steering.interventions[0].feature", f"0 to {D_SAE - 1}"
    ),
    "index object out of range": Refusal(
        one(feature={"sae": "bundled", "index": 99999}, unit="act"),
        "steering.interventions[0].feature",
        f"0 to {D_SAE - 1}",
    ),
    "negative index": Refusal(
        one(feature={"sae": "bundled", "index": -1}),
        "steering.interventions[0].feature.index",
        "greater than or equal to 0",
    ),
    "index of the wrong type": Refusal(
        one(feature={"sae": "bundled", "index": "5"}), "steering.interventions[0].feature.index", "integer"
    ),
    "unknown field of a feature": Refusal(
        one(feature={"sae": "bundled", "index": 5, "name": "x"}),
        "steering.interventions[0].feature.name",
        "unknown field",
    ),
    "feature without an SAE": Refusal(one(feature="golden-gate"), "steering.interventions[0].feature", "<sae>/<name>"),
    "feature of the wrong type": Refusal(
        one(feature=GOLDEN_GATE), "steering.interventions[0].feature", "<sae>/<index>"
    ),
    "digits of another script": Refusal(
        one(feature="bundled/٥"), "steering.interventions[0].feature", "no feature named"
    ),
    "max_act of an unmeasured feature": Refusal(
        one(feature="second/5"), "steering.interventions[0].unit", "no stored maximum"
    ),
    "value of the wrong type": Refusal(one(value="0.74"), "steering.interventions[0].value", "valid number"),
    "value true": Refusal(one(value=True), "steering.interventions[0].value", "valid number"),
    "value null": Refusal(one(value=None), "steering.interventions[0].value", "valid number"),
    "NaN": Refusal(one(value=float("nan")), "steering.interventions[0].value", "finite"),
    "infinity": Refusal(one(value=float("inf")), "steering.interventions[0].value", "finite"),
    "minus infinity": Refusal(one(value=float("-inf")), "steering.interventions[0].value", "finite"),
    "beyond the bound": Refusal(one(value=1e7), "steering.interventions[0].value", "1000000"),
    "ablate with a value": Refusal(
        steering({"op": "ablate", "feature": "bundled/5", "value": 0}),
        "steering.interventions[0].value",
        "unknown field",
    ),
    "unknown operation": Refusal(one(op="clmp"), "steering.interventions[0]", "Did you mean 'clamp'?"),
    "scale with a value": Refusal(one(op="scale"), "steering.interventions[0].value", "special_tokens, op, factor"),
    "unknown unit": Refusal(one(unit="sigma"), "steering.interventions[0].unit", "'max_act', 'act' or 'resid_norm'"),
    "a window of nothing": Refusal(one(tokens={"first": 0}), "steering.interventions[0].tokens.first", "equal to 1"),
    "special_tokens of the whole": Refusal(
        steering(GOOD, special_tokens=True), "steering.special_tokens", "a field of each intervention"
    ),
    "unknown tokens": Refusal(one(tokens="last"), "steering.interventions[0].tokens", "'all', 'prompt' or 'generated'"),
    "unknown receipt": Refusal(steering(GOOD, receipt="full"), "steering.receipt", "'none', 'summary' or 'tokens'"),
    "one feature twice": Refusal(
        steering(GOOD, {**GOOD, "feature": f"bundled/{GOLDEN_GATE}", "unit": "act"}),
        "steering.interventions[1].feature",
        "already",
    ),
    "one feature at overlapping tokens": Refusal(
        steering(GOOD, {**GOOD, "tokens": "prompt"}), "steering.interventions[1].feature", "already"
    ),
    "a rule that compares nothing": Refusal(
        ruled({"feature": "bundled/5"}), "steering.rules[0].when", "give one of 'above' and 'below'"
    ),
    "a condition of no kind": Refusal(
        ruled({"any": [{"above": 1}]}), "steering.rules[0].when.any[0]", "an object with 'feature' and 'above'"
    ),
    "an unknown field deep in a condition": Refusal(
        ruled({"not": {"feature": "bundled/5", "abov": 1}}), "steering.rules[0].when.not.abov", "Did you mean 'above'?"
    ),
    "an unknown feature deep in a condition": Refusal(
        ruled({"all": [{"feature": "bundled/bridg", "above": 1}]}),
        "steering.rules[0].when.all[0].feature",
        "no feature",
    ),
    "a bound without a maximum": Refusal(
        ruled({"feature": "second/5", "above": 1}), "steering.rules[0].when.unit", "no stored maximum"
    ),
    "a rule that does something else": Refusal(ruled(then="stop"), "steering.rules[0].then", "'abort' or a list"),
    "a rule that does nothing": Refusal(ruled(then=[]), "steering.rules[0].then", ""),
    "an abort with a scope": Refusal(ruled(scope="rest_of_request"), "steering.rules[0]", "no scope"),
    "an unknown field of a rule": Refusal(ruled(thn="abort"), "steering.rules[0].thn", "Did you mean 'then'?"),
    "a rule against an intervention": Refusal(
        {"steering": {"interventions": [GOOD], **ruled(then=[GOOD])["steering"]}},
        "steering.rules[0].then[0].feature",
        "interventions[0] already moves",
    ),
    "a readout of nothing": Refusal(steering(GOOD, readout={}), "steering.readout", "'features' or 'top_k'"),
    "a readout of another SAE": Refusal(
        steering(readout={"top_k": 1, "saes": ["bundle"]}), "steering.readout.saes[0]", "Did you mean 'bundled'?"
    ),
    "an unknown field of a readout": Refusal(
        steering(readout={"topk": 1}), "steering.readout.topk", "Did you mean 'top_k'?"
    ),
    "nothing at all": Refusal({"steering": {}}, "steering", "'interventions', 'rules' or 'readout'"),
    "a vector and a feature": Refusal(
        steering({"op": "add", "vector": "v", "value": 1, "feature": "bundled/5"}),
        "steering.interventions[0]",
        "give one of 'feature' and 'vector'",
    ),
    "not an object: number": Refusal({"steering": 3}, "steering", "dictionary"),
    "saklas": Refusal({"steering": "0.5 happy + 0.2 calm"}, "steering", "saklas"),
    "RhizoNymph's gates": Refusal({"steering": [{"when": {}, "apply": {}}]}, "steering", "RhizoNymph"),
    "EasySteer": Refusal({"steering": {"vectors": [], "conflict": "sequential"}}, "steering.vectors", "EasySteer"),
    "a dict of vectors": Refusal({"steering": {"happy": [0.1, 0.2], "calm": [0.3]}}, "steering", "another project"),
    "near miss: steerng": Refusal({"steerng": {"interventions": [GOOD]}}, "steerng", "Did you mean 'steering'?"),
    "near miss: Steering": Refusal({"Steering": {}}, "Steering", "Did you mean"),
    "near miss: sterring": Refusal({"sterring": {}}, "sterring", "Did you mean"),
    "near miss: steering_vectors": Refusal({"steering_vectors": {"x": 1}}, "steering_vectors", "RhizoNymph"),
    "near miss beside a good one": Refusal({**one(), "steer": 1}, "steer", "Did you mean"),
    "Goodfire's controller": Refusal({"controller": {"interventions": []}}, "controller", "Goodfire"),
    "SteeringAPI's interventions": Refusal(
        {"interventions": [{"index_in_sae": 1, "strength": 0.4, "mode": "add"}]}, "interventions", "SteeringAPI"
    ),
    "extra_body in the JSON": Refusal({"extra_body": one()}, "extra_body", "at the top level"),
    "an intervention at the top level": Refusal({"clamp": GOOD}, "clamp", "at the top level"),
    "hotwire": Refusal({"vllm_xargs": {"hotwire": "{}"}}, "vllm_xargs.hotwire", "hotwire"),
    "past the checks": Refusal({"vllm_xargs": {"saeclamp": "x"}}, "vllm_xargs.saeclamp", "engine"),
    "beam search": Refusal({**one(), "use_beam_search": True, "n": 2}, "use_beam_search", "Beam search"),
}


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
    more = [{"op": "clamp", "feature": f"bundled/{n}", "value": 0.01, "tokens": positions(1, 1000)} for n in range(3)]
    refused = server.http.post("/v1/steering/validate", json={"steering": {"interventions": more}})
    assert (refused.status_code, "3000 separate ranges" in refused.json()["error"]["message"]) == (400, True)
