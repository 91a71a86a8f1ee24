"""When the worker cannot steer a request, that request fails and its neighbours do not notice."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.support.checkpoints import make_model, make_sae
from tests.support.faulty_server import FAILS_AFTER_TOKENS, FAILS_AT_ADMISSION, NUM_GOOD_STEPS
from tests.support.serving import Server, serve

GOOD = 15
PROMPT = "Once upon a time there was a miller who"


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("faulty")
    model = make_model(folder / "model", model_folder)
    sae = make_sae(folder / "sae", layer=1, d_in=64)
    flags = ["--sae", f"sae={sae}", "--enforce-eager", "--dtype", "float32", "--max-model-len", "512"]
    flags += ["--served-model-name", "tiny"]
    flags += ["--trace", str(folder / "trace.jsonl")]
    with serve(folder / "log", str(model), *flags, name="tiny", entry="tests.support.faulty_server") as server:
        server.trace = folder / "trace.jsonl"
        yield server


def request(feature: int | None, **params: Any) -> dict[str, Any]:
    body = {"prompt": PROMPT, "temperature": 0, "max_tokens": 24, "ignore_eos": True, **params}
    if feature is None:
        return body
    clamp = {"op": "clamp", "feature": f"sae/{feature}", "value": 9, "unit": "act"}
    return {**body, "steering": {"interventions": [clamp]}}


@pytest.mark.parametrize("feature", [FAILS_AT_ADMISSION, FAILS_AFTER_TOKENS])
@pytest.mark.parametrize("receipt", ["summary", "none"])
def test_a_request_that_cannot_be_steered_is_a_500(faulty: Server, feature: int, receipt: str) -> None:
    body = request(feature)
    body["steering"]["receipt"] = receipt
    response = faulty.post("/v1/completions", **body)
    assert response.status_code == 500
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("steering_not_applied", "steering")
    assert "rows" in error["message"]
    assert "choices" not in response.json()


@pytest.mark.parametrize("stream", [False, True])
def test_on_messages_it_fails_as_anthropics_clients_read_it(faulty: Server, stream: bool) -> None:
    body = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 24, "stream": stream}
    response = faulty.post("/v1/messages", **body, steering=request(FAILS_AT_ADMISSION)["steering"])
    if stream:
        (event,) = [event for event in response.text.split("\n\n") if event.startswith("event: error\n")]
        error = json.loads(event.partition("data: ")[2])
    else:
        assert response.status_code == 500
        error = response.json()
    assert (error["type"], error["error"]["type"]) == ("error", "api_error")
    assert "rows" in error["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_is_in_the_trace_with_its_reason(faulty: Server, stream: bool) -> None:
    response = faulty.post("/v1/completions", **request(FAILS_AT_ADMISSION), stream=stream)
    (line,) = faulty.trace_of(response.headers["x-request-id"])
    assert (line["status"], line["receipt"], "rows" in line["error"]) == ("failed", None, True)


def test_one_failed_choice_fails_the_whole_answer(faulty: Server) -> None:
    assert faulty.post("/v1/completions", **request(FAILS_AT_ADMISSION, n=2, temperature=1)).status_code == 500


def test_a_stream_that_cannot_be_steered_carries_no_text_and_ends_in_an_error(faulty: Server) -> None:
    text, errors = stream(faulty, request(FAILS_AT_ADMISSION))
    assert text == ""
    assert [error["code"] for error in errors] == ["steering_not_applied"]


def test_a_stream_that_is_lost_on_the_way_stops_before_any_unsteered_text(faulty: Server) -> None:
    steered_text, _ = stream(faulty, request(GOOD))
    text, errors = stream(faulty, request(FAILS_AFTER_TOKENS, max_tokens=NUM_GOOD_STEPS))
    whole = text
    assert errors == []
    text, errors = stream(faulty, request(FAILS_AFTER_TOKENS))
    assert text == whole, "only what was produced while the edits were applied may have left"
    assert [error["code"] for error in errors] == ["steering_not_applied"]
    assert steered_text != text


def test_the_neighbours_of_a_failing_request_are_untouched(faulty: Server) -> None:
    bodies = [request(feature) for feature in (GOOD, None, FAILS_AT_ADMISSION, FAILS_AFTER_TOKENS, GOOD, None)]
    alone = [faulty.post("/v1/completions", **body) for body in bodies]
    with ThreadPoolExecutor(len(bodies)) as pool:
        together = list(pool.map(lambda body: faulty.post("/v1/completions", **body), bodies))
    assert [response.status_code for response in together] == [200, 200, 500, 500, 200, 200]
    for one, other in zip(alone, together, strict=True):
        if one.status_code == 200:
            assert one.json()["choices"][0]["text"] == other.json()["choices"][0]["text"]


def test_the_server_goes_on_after_a_fault(faulty: Server) -> None:
    before = faulty.post("/v1/completions", **request(GOOD)).json()["choices"][0]["text"]
    faulty.post("/v1/completions", **request(FAILS_AT_ADMISSION))
    assert faulty.post("/v1/completions", **request(GOOD)).json()["choices"][0]["text"] == before


def stream(server: Server, body: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """All text, and all errors, of a stream."""
    response = server.post("/v1/completions", **body, stream=True)
    lines = [line.removeprefix("data: ") for line in response.text.split("\n") if line]
    assert lines.pop() == "[DONE]"
    events = [json.loads(line) for line in lines]
    text = "".join(choice["text"] for event in events for choice in event.get("choices", []))
    return text, [event["error"] for event in events if "error" in event]


def test_an_engine_that_is_killed_ends_the_server_with_a_sentence(faulty: Server) -> None:
    """The last test of this file, because it is the end of the server."""
    assert faulty.pid is not None
    server = psutil.Process(faulty.pid)
    workers = [process for process in server.children(recursive=True) if not process.children()]
    for process in (*server.children(), *workers):
        with suppress(psutil.NoSuchProcess):
            if "resource_tracker" not in " ".join(process.cmdline()):
                process.kill()
    deadline = time.monotonic() + 30
    while server.is_running() and server.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "it serves on without an engine"
        time.sleep(0.2)
    assert faulty.log is not None
    said = faulty.log.read_text()
    assert [line for line in said.splitlines() if line.startswith("saeclamp: The engine has died: ")], said[-2000:]
