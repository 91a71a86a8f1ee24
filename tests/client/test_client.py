"""What the client sends, and how it reads what comes back."""

from __future__ import annotations

import math
import socket
from typing import Any

import httpx
import pytest
from tests.support.scripted_server import MODELS, RECEIPT, ScriptedServer, chat_answer, reply, text_answer

import saeclamp
from saeclamp import (
    Ablate,
    Add,
    APIResponseValidationError,
    Clamp,
    Client,
    InvalidArgumentError,
    NotSteeredError,
    Receipt,
    SaeclampError,
    Steering,
    extra_body,
)

HI = [{"role": "user", "content": "hi"}]
CLAMP = Clamp(feature="bundled/914", value=0.74)
CLAMP_JSON = {
    "op": "clamp",
    "feature": "bundled/914",
    "value": 0.74,
    "unit": "max_act",
    "tokens": "all",
    "special_tokens": False,
}


def test_a_steered_chat_completion_comes_back_with_its_receipt(server: ScriptedServer, client: Client) -> None:
    server.will(reply(chat_answer("Golden", steering=RECEIPT, system_fingerprint="f")))
    answer = client.chat.completions.create(model="m", messages=HI, steering=CLAMP, temperature=0, top_k=3)

    assert server.seen[0].path == "/v1/chat/completions"
    assert server.seen[0].json == {
        "model": "m",
        "messages": HI,
        "stream": False,
        "temperature": 0,
        "top_k": 3,
        "steering": {"interventions": [CLAMP_JSON], "receipt": "summary"},
    }
    assert (answer.text, answer.choices[0].finish_reason) == ("Golden", "stop")
    assert answer.usage is not None
    assert answer.usage.total_tokens == 4
    assert answer.steering is not None
    assert answer.steering.interventions[0].value_act == 170.2
    assert answer.steering.interventions[0].tokens.generated == 96
    assert answer.model_extra == {"system_fingerprint": "f"}


def test_a_text_completion_is_sent_to_its_own_endpoint(server: ScriptedServer, client: Client) -> None:
    server.will(reply(text_answer(" world", steering=RECEIPT)))
    answer = client.completions.create(model="m", prompt="hello", steering=[CLAMP], max_tokens=5)
    assert server.seen[0].path == "/v1/completions"
    assert server.seen[0].json["prompt"] == "hello"
    assert server.seen[0].json["max_tokens"] == 5
    assert answer.text == answer.choices[0].text == " world"
    assert answer.steering is not None


@pytest.mark.parametrize(
    "steering",
    [
        pytest.param(CLAMP, id="one-intervention"),
        pytest.param([CLAMP], id="a-list"),
        pytest.param((CLAMP,), id="a-tuple"),
        pytest.param(Steering(interventions=(CLAMP,)), id="the-object"),
        pytest.param({"interventions": [{"op": "clamp", "feature": "bundled/914", "value": 0.74}]}, id="its-json"),
    ],
)
def test_every_way_to_ask_for_steering_sends_the_same(server: ScriptedServer, client: Client, steering: Any) -> None:
    server.will(reply(chat_answer(steering=RECEIPT)))
    client.chat.completions.create(model="m", messages=HI, steering=steering)
    assert server.seen[0].json["steering"] == {"interventions": [CLAMP_JSON], "receipt": "summary"}


def test_extra_body_is_merged_and_its_steering_is_watched(server: ScriptedServer, client: Client) -> None:
    server.will(reply(chat_answer()))
    with pytest.raises(NotSteeredError):
        client.chat.completions.create(model="m", messages=HI, extra_body={**extra_body(CLAMP), "min_p": 0.1})
    assert server.seen[0].json["steering"]["interventions"] == [CLAMP_JSON]
    assert server.seen[0].json["min_p"] == 0.1
    assert "extra_body" not in server.seen[0].json


def test_extra_body_gives_openai_python_the_same_request(server: ScriptedServer) -> None:
    import openai  # here, because it takes a second

    server.will(reply(chat_answer(steering=RECEIPT)))
    with openai.OpenAI(base_url=server.url + "/v1", api_key="k") as theirs:
        answer = theirs.chat.completions.create(model="m", messages=HI, extra_body=extra_body(CLAMP))
    assert server.seen[0].json["steering"] == {"interventions": [CLAMP_JSON], "receipt": "summary"}
    assert answer.model_extra is not None
    assert Receipt.model_validate(answer.model_extra["steering"]).applied


@pytest.mark.parametrize(
    ("params", "error"),
    [
        pytest.param(
            {"steering": {"interventions": [CLAMP_JSON | {"vlaue": 1}]}}, InvalidArgumentError, id="unknown-field"
        ),
        pytest.param({"steering": []}, InvalidArgumentError, id="no-interventions"),
        pytest.param({"steering": {}}, InvalidArgumentError, id="empty-object"),
        pytest.param({"steerng": [CLAMP]}, TypeError, id="misspelt"),
        pytest.param({"extra_body": {"Steering": {}}}, TypeError, id="misspelt-in-extra-body"),
        pytest.param({"steering": CLAMP, "extra_body": extra_body(CLAMP)}, TypeError, id="twice"),
        pytest.param({"temperature": math.nan}, ValueError, id="nan"),
        pytest.param({"user": object()}, TypeError, id="no-json"),
    ],
)
def test_a_mistake_is_found_before_anything_is_sent(
    server: ScriptedServer, client: Client, params: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error) as raised:
        client.chat.completions.create(model="m", messages=HI, **params)
    assert isinstance(raised.value, SaeclampError)
    assert server.seen == []


@pytest.mark.parametrize("extra", [{}, {"steering": None}, {"steering": {**RECEIPT, "applied": False}}])
def test_text_without_a_receipt_of_applied_steering_is_not_handed_back(
    server: ScriptedServer, client: Client, extra: dict[str, Any]
) -> None:
    server.will(reply(chat_answer(**extra), headers={"x-request-id": "r7"}))
    with pytest.raises(NotSteeredError, match="receipt") as caught:
        client.chat.completions.create(model="m", messages=HI, steering=CLAMP)
    assert caught.value.request_id == "r7"


def test_no_receipt_is_expected_where_none_was_asked_for(server: ScriptedServer, client: Client) -> None:
    server.will(reply(chat_answer("a")), reply(chat_answer("b")))
    quiet = Steering(interventions=(Ablate(feature="s/1"), Add(feature="s/2", value=-1)), receipt="none")
    assert client.chat.completions.create(model="m", messages=HI, steering=quiet).text == "a"
    assert client.chat.completions.create(model="m", messages=HI).text == "b"
    assert server.seen[0].json["steering"]["receipt"] == "none"
    assert "steering" not in server.seen[1].json


def test_the_base_model_is_looked_up_once(server: ScriptedServer, client: Client) -> None:
    server.will(reply(MODELS), reply(chat_answer()), reply(text_answer()))
    client.chat.completions.create(messages=HI)
    client.completions.create(prompt="x")
    assert server.paths() == ["/v1/models", "/v1/chat/completions", "/v1/completions"]
    assert [seen.json["model"] for seen in server.seen[1:]] == ["base", "base"]


def test_a_server_without_a_base_model_is_an_error(server: ScriptedServer, client: Client) -> None:
    server.will(reply({"object": "list", "data": [{"id": "v", "parent": "gone"}]}))
    with pytest.raises(SaeclampError, match="Listed: v"):
        client.chat.completions.create(messages=HI)


def test_models_are_listed_with_their_parents(server: ScriptedServer, client: Client) -> None:
    server.will(reply(MODELS))
    models = client.models.list()
    assert models.ids == ["gate", "base"]
    assert models.data[0].parent == "base"


def test_a_message_of_an_answer_can_be_sent_back(server: ScriptedServer, client: Client) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "because"}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    server.will(reply({**chat_answer(), "choices": [choice]}), reply(chat_answer()))

    said = client.chat.completions.create(model="m", messages=HI).choices[0].message
    assert said.tool_calls is not None
    assert said.tool_calls[0].function is not None
    assert said.tool_calls[0].function.name == "f"
    client.chat.completions.create(model="m", messages=[*HI, said])
    assert server.seen[1].json["messages"][1] == {"role": "assistant", "tool_calls": [call], "reasoning": "because"}


def test_logprobs_are_typed_and_complete(server: ScriptedServer, client: Client) -> None:
    top = {"token": "b", "logprob": -1.0, "bytes": [98]}
    content = [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [top]}]
    choice = {**chat_answer()["choices"][0], "logprobs": {"content": content}, "token_ids": [5]}
    server.will(reply({**chat_answer(), "choices": [choice]}))
    first = client.chat.completions.create(model="m", messages=HI, logprobs=True).choices[0]
    assert first.logprobs is not None
    assert first.logprobs.content is not None
    assert first.logprobs.content[0].top_logprobs[0].logprob == -1.0
    assert first.model_extra == {"token_ids": [5]}


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_a_base_url_may_end_in_v1(server: ScriptedServer, suffix: str) -> None:
    server.will(reply(MODELS), reply({}))
    with Client(server.url + suffix) as client:
        client.models.list()
        assert client.health()
    assert server.paths() == ["/v1/models", "/health"]


@pytest.mark.parametrize("suffix", ["", "/v1"])
def test_a_host_and_a_port_are_a_base_url(server: ScriptedServer, suffix: str) -> None:
    server.will(reply(MODELS))
    with Client(server.url.removeprefix("http://") + suffix) as client:
        client.models.list()
    assert server.paths() == ["/v1/models"]


@pytest.mark.parametrize("suffix", ["/v1/chat/completions", "/v1/completions/", "/v1/models"])
def test_what_was_pasted_behind_v1_is_cut(server: ScriptedServer, suffix: str) -> None:
    server.will(reply(MODELS))
    with Client(server.url + suffix) as client:
        client.models.list()
    assert server.paths() == ["/v1/models"]


@pytest.mark.parametrize("before", ["", ":", " "])
def test_a_bare_port_is_one_of_this_machine(server: ScriptedServer, before: str) -> None:
    server.will(reply(MODELS))
    with Client(before + server.url.rpartition(":")[2]) as client:
        client.models.list()
    assert server.paths() == ["/v1/models"]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "0",
        "99999",
        "http://",
        "http:/here",
        "http:8000",
        "here:port",
        "here:0",
        "ftp://here",
        "http://[::1",
        "here/?a=1",
        "here#there",
        f"{'a' * 70}.com",
    ],
)
def test_what_is_no_address_is_refused_before_anything_is_asked(url: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"is no address such as http://127\.0\.0\.1:8000") as raised:
        Client(url)
    assert str(raised.value).startswith(repr(url)[:20])
    assert raised.value.param == "base_url"


def test_a_path_before_v1_is_kept(server: ScriptedServer) -> None:
    server.will(reply(MODELS))
    with Client(server.url + "/proxy/v1") as client:
        client.models.list()
    assert server.paths() == ["/proxy/v1/models"]


def test_the_key_comes_from_the_argument_else_from_the_environment(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.will(*[reply(MODELS)] * 4)
    monkeypatch.delenv("SAECLAMP_API_KEY", raising=False)
    _list_models(Client(server.url))
    monkeypatch.setenv("SAECLAMP_API_KEY", "from-env\n")
    _list_models(Client(server.url))
    _list_models(Client(server.url, api_key="given"))
    _list_models(Client(server.url, api_key=""))
    sent = [seen.headers.get("authorization") for seen in server.seen]
    assert sent == [None, "Bearer from-env", "Bearer given", None]


def _list_models(client: Client) -> None:
    with client:
        client.models.list()


def test_headers_of_the_client_and_of_the_call_are_sent(server: ScriptedServer) -> None:
    server.will(reply(chat_answer(), headers={"x-request-id": "mine"}))
    with Client(server.url, default_headers={"x-team": "a", "x-both": "client"}) as client:
        headers = {"X-Request-Id": "mine", "X-Both": "call"}
        answer = client.chat.completions.create(model="m", messages=HI, extra_headers=headers)
    sent = server.seen[0].headers
    assert (sent["x-team"], sent["x-both"], sent["x-request-id"]) == ("a", "call", "mine")
    assert sent["user-agent"].startswith("saeclamp-python/")
    assert "extra_headers" not in server.seen[0].json
    assert answer.request_id == "mine"


def test_a_given_http_client_is_used_and_left_open(server: ScriptedServer) -> None:
    server.will(reply(MODELS))
    with httpx.Client(headers={"x-from": "caller"}) as http_client:
        with Client(server.url, http_client=http_client) as client:
            client.models.list()
        assert not http_client.is_closed
    assert server.seen[0].headers["x-from"] == "caller"


def test_a_closed_client_closes_its_connections(server: ScriptedServer) -> None:
    server.will(reply(MODELS), reply(MODELS))
    client = Client(server.url)
    client.models.list()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.models.list()


def test_health_is_false_for_a_broken_and_for_an_absent_server(server: ScriptedServer, client: Client) -> None:
    server.will(reply(b""), reply(b"", status=503))
    assert client.health() is True
    assert client.health() is False
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        with Client(f"http://127.0.0.1:{unused.getsockname()[1]}") as absent:
            assert absent.health() is False
    assert server.paths() == ["/health", "/health"]


@pytest.mark.parametrize("body", [b"<html>hello</html>", b"", b"[1]", {"choices": "none"}, chat_answer(steering="yes")])
def test_an_answer_that_is_not_the_api_is_refused(server: ScriptedServer, client: Client, body: Any) -> None:
    server.will(reply(body, headers={"x-request-id": "r1"}))
    with pytest.raises(APIResponseValidationError, match="request r1"):
        client.chat.completions.create(model="m", messages=HI)


def test_the_receipt_of_an_answer_that_was_not_steered_is_missed_without_blame() -> None:
    assert saeclamp.receipt_of({"choices": [], "steering": RECEIPT}).applied
    with pytest.raises(NotSteeredError, match="This answer carries no receipt: it was not steered, or its request"):
        saeclamp.receipt_of({"choices": []})
    with pytest.raises(NotSteeredError, match="carries a receipt with applied=false"):
        saeclamp.receipt_of({"choices": [], "steering": {**RECEIPT, "applied": False}})
