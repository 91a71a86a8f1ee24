"""Answers that a stopping server ends early say so on every endpoint, streamed and not, steered and not."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from tests.support.checkpoints import make_model, make_sae
from tests.support.serving import Server, serve, wait_for

LONG = 1900
"""Tokens that do not end within the time that is given."""
DRAIN_S = 3
STEERING = {"interventions": [{"op": "clamp", "feature": "sae/15", "value": 9, "unit": "act"}]}
QUESTION = "Once upon a time"
RESPONSES: dict[str, Any] = {"input": QUESTION, "max_output_tokens": LONG}
MESSAGES: dict[str, Any] = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": LONG}
BODIES = {
    "/v1/chat/completions": {"messages": MESSAGES["messages"], "max_tokens": LONG},
    "/v1/responses": RESPONSES,
    "/v1/messages": MESSAGES,
}
Key = tuple[str, bool, bool]
"""Path, whether it streams, and whether it steers."""


def ask(server: Server, path: str, stream: bool, steered: bool) -> httpx.Response:
    # without a word of its own for that, the third endpoint hopes: the random model does not end this answer
    body = {"model": "tiny", "stream": stream, "temperature": 0, **BODIES[path]}
    body |= {"ignore_eos": True} if path != "/v1/messages" else {}
    body |= {"steering": STEERING} if steered else {}
    return httpx.post(f"{server.url}{path}", json=body, timeout=200)


def openais_stream(server: Server) -> list[Any]:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    extra = {"ignore_eos": True}
    return list(client.responses.create(model="tiny", stream=True, temperature=0, extra_body=extra, **RESPONSES))


def anthropics_error(server: Server, stream: bool) -> anthropic.APIStatusError:
    client = anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)

    def read() -> None:
        answer: Any = client.messages.create(model="tiny", stream=stream, **MESSAGES)
        for _ in answer:
            pass

    with pytest.raises(anthropic.APIStatusError) as raised:
        read()
    return raised.value


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[dict[Any, Any]]:
    """What a server's clients get when it is told to stop, and its time for that is over."""
    folder = tmp_path_factory.mktemp("cut")
    model = make_model(folder / "model", model_folder)
    sae = make_sae(folder / "sae", layer=1, d_in=64)
    flags = ["--sae", f"sae={sae}", "--enforce-eager", "--dtype", "float32", "--max-model-len", "2048"]
    flags += ["--served-model-name", "tiny", "--max-num-seqs", "32", "--drain", str(DRAIN_S)]
    keys: list[Key] = [*product(BODIES, (False, True), (False, True))]
    with serve(folder / "log", str(model), *flags, name="tiny") as server, ThreadPoolExecutor(20) as pool:
        assert server.pid is not None
        answers: dict[Any, Any] = {key: pool.submit(ask, server, *key) for key in keys}
        answers["openai"] = pool.submit(openais_stream, server)
        answers |= {stream: pool.submit(anthropics_error, server, stream) for stream in (False, True)}

        def all_run() -> bool:
            figures = httpx.get(f"{server.url}/metrics").text.splitlines()
            running = [line for line in figures if line.startswith("vllm:num_requests_running")]
            return float(running[0].rpartition(" ")[2]) == len(answers)

        wait_for(all_run, 60, "not all run")
        os.kill(server.pid, signal.SIGTERM)
        yield {key: answer.result() for key, answer in answers.items()}


def events(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    return [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]


def steered_tokens(body: dict[str, Any]) -> int:
    generated: int = body["steering"]["interventions"][0]["tokens"]["generated"]
    return generated


@pytest.mark.parametrize("steered", [False, True])
def test_a_response_that_was_cut_short_is_incomplete(ended: dict[Any, Any], steered: bool) -> None:
    answer = ended["/v1/responses", False, steered]
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "abort"})
    assert [item["status"] for item in body["output"]] == ["incomplete"]
    assert body["output"][0]["content"][0]["text"] != ""
    assert ("steering" in body) == steered
    if steered:
        assert 1 <= steered_tokens(body) < LONG


@pytest.mark.parametrize("steered", [False, True])
def test_a_streamed_response_that_was_cut_short_ends_as_incomplete(ended: dict[Any, Any], steered: bool) -> None:
    answer = ended["/v1/responses", True, steered]
    told = events(answer)
    last = told[-1]
    assert last["type"] == "response.incomplete"
    assert "event: response.incomplete\n" in answer.text
    assert "response.completed" not in answer.text
    assert [event["sequence_number"] for event in told] == [*range(len(told))]
    response = last["response"]
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "abort"})
    items = [event["item"] for event in told if event["type"] == "response.output_item.done"]
    assert [item["status"] for item in items + response["output"]] == ["incomplete", "incomplete"]
    assert ("steering" in response) == steered
    if steered:
        assert 1 <= steered_tokens(response) < LONG


@pytest.mark.parametrize("steered", [False, True])
def test_a_message_that_was_cut_short_is_an_error_after_which_clients_ask_again(
    ended: dict[Any, Any], steered: bool
) -> None:
    answer = ended["/v1/messages", False, steered]
    assert answer.status_code == 503, answer.text
    assert answer.json()["error"]["type"] == "overloaded_error"
    assert "stopping" in answer.json()["error"]["message"]


@pytest.mark.parametrize("steered", [False, True])
def test_a_streamed_message_that_was_cut_short_ends_in_an_error_with_its_receipt(
    ended: dict[Any, Any], steered: bool
) -> None:
    told = events(ended["/v1/messages", True, steered])
    kinds = [event["type"] for event in told]
    assert kinds[-2:] == ["content_block_stop", "error"]
    assert not {"message_delta", "message_stop"} & {*kinds}
    assert "content_block_delta" in kinds
    assert told[-1]["error"]["type"] == "overloaded_error"
    assert ("steering" in told[-1]) == steered
    if steered:
        assert 1 <= steered_tokens(told[-1]) < LONG


@pytest.mark.parametrize("steered", [False, True])
def test_a_chat_completion_that_was_cut_short_says_abort(ended: dict[Any, Any], steered: bool) -> None:
    body = ended["/v1/chat/completions", False, steered].json()
    assert body["choices"][0]["finish_reason"] == "abort"
    reasons = [event["choices"][0]["finish_reason"] for event in events(ended["/v1/chat/completions", True, steered])]
    assert reasons[-1] == "abort"


def test_openais_client_reads_why_a_response_is_incomplete(ended: dict[Any, Any]) -> None:
    last = ended["openai"][-1]
    assert last.type == "response.incomplete"
    assert last.response.incomplete_details.reason == "abort"


@pytest.mark.parametrize("stream", [False, True])
def test_anthropics_client_raises_an_error(ended: dict[Any, Any], stream: bool) -> None:
    error = ended[stream]
    assert isinstance(error.body, dict)
    assert error.body["error"]["type"] == "overloaded_error"
