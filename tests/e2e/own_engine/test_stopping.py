"""How servers end: told to, with every receipt; by themselves, with a sentence. Killed: see `test_start_up`."""

from __future__ import annotations

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.support.checkpoints import make_model, make_sae
from tests.support.serving import Server, is_gone, serve, wait_for

NUM_STREAMS = 16
SHORT, LONG = 60, 1900
"""Tokens: what ends within the time that is given, and what does not."""
DRAIN_S = 6


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> list[str]:
    folder = tmp_path_factory.mktemp("stopping")
    model = make_model(folder / "model", model_folder)
    sae = make_sae(folder / "sae", layer=1, d_in=64)
    flags = ["--sae", f"sae={sae}", "--enforce-eager", "--dtype", "float32", "--max-model-len", "2048"]
    return [str(model), *flags, "--served-model-name", "tiny", "--max-num-seqs", "32"]


def stream(server: Server, number: int, begun: list[int]) -> tuple[str | None, dict[str, Any] | None, str]:
    """Stream an answer: finish reason, receipt and last line. Odd ones are not steered, the last two are long."""
    body = {"model": "tiny", "prompt": "Once upon a time", "stream": True, "ignore_eos": True, "temperature": 0}
    body["max_tokens"] = LONG if number >= NUM_STREAMS - 2 else SHORT
    if number % 2 == 0:
        body["steering"] = {"interventions": [{"op": "clamp", "feature": "sae/15", "value": 9, "unit": "act"}]}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=200) as response:
        lines = []
        for line in response.iter_lines():
            if line and not lines:
                begun.append(number)
            lines += [line] if line else []
    last = json.loads(lines[-2].removeprefix("data: "))
    return last["choices"][0]["finish_reason"], last.get("steering"), lines[-1]


def test_a_server_that_is_told_to_stop_ends_every_answer_with_its_receipt(tmp_path: Path, tiny: list[str]) -> None:
    log = tmp_path / "log"
    flags = [*tiny[1:], "--drain", str(DRAIN_S)]
    with serve(log, tiny[0], *flags, name="tiny", verbose=False) as server, ThreadPoolExecutor(NUM_STREAMS) as pool:
        assert server.pid is not None
        assert httpx.get(f"{server.url}/ready").json() == {"status": "ready", "database": "ok"}
        begun: list[int] = []
        answers = [pool.submit(stream, server, number, begun) for number in range(NUM_STREAMS)]
        wait_for(lambda: len(begun) == NUM_STREAMS, 60, "not all run")
        # as Ctrl-C in a terminal does, and service managers: to all of its processes
        os.killpg(server.pid, signal.SIGINT)
        wait_for(lambda: httpx.get(f"{server.url}/ready").status_code == 503, 5, "it says that it is ready")
        assert httpx.get(f"{server.url}/health").status_code == 200
        late = httpx.post(f"{server.url}/v1/completions", json={"model": "tiny", "prompt": "Hi"})
        assert (late.status_code, late.json()["error"]["code"]) == (503, "server_stopping")
        assert int(late.headers["Retry-After"]) > 0
        ended = [answer.result() for answer in answers]
        wait_for(lambda: is_gone(server.pid), 30, "it runs on")
    for number, (reason, receipt, last) in enumerate(ended):
        assert last == "data: [DONE]"
        assert reason == ("abort" if number >= NUM_STREAMS - 2 else "length"), number
        assert (receipt is not None) == (number % 2 == 0), number
        if receipt is not None:
            edited = receipt["interventions"][0]["tokens"]["generated"]
            assert 1 <= edited < LONG if reason == "abort" else edited == SHORT - 1
    said = log.read_text().splitlines()
    assert [line for line in said if line.startswith("saeclamp: finishing ") and f"for at most {DRAIN_S} s" in line]
    assert [line for line in said if f"--drain {DRAIN_S} is over: 2 requests cut short" in line]
    assert said[-1] == "saeclamp: stopped."
    vllm_log = Path(
        next(line for line in said if "its log is " in line).rpartition("its log is ")[2].removesuffix(" ...")
    )
    assert "Traceback" not in vllm_log.read_text(), "an end that was asked for is no error"
    unexpected = [line for line in said if not line.startswith("saeclamp: ")]
    example = unexpected.index(next(line for line in unexpected if line.startswith("curl ")))
    assert [line for line in unexpected[example + 4 :] if line] == [], "nothing but our own words"
    assert [line for line in unexpected[:example] if line] == []


def test_an_engine_that_cannot_start_ends_the_command_with_its_reason_and_the_logs_path(
    tmp_path: Path, tiny: list[str]
) -> None:
    """A size of attention heads that no kernel for CPUs has."""
    config = Path(tiny[0]) / "config.json"
    kept = config.read_text()
    config.write_text(json.dumps({**json.loads(kept), "head_dim": 20}))
    try:
        with (
            pytest.raises(RuntimeError, match="The server ended with status 1") as raised,
            serve(tmp_path / "log", tiny[0], *tiny[1:], name="tiny", verbose=False),
        ):
            pytest.fail("it was served")
    finally:
        config.write_text(kept)
    said = str(raised.value).splitlines()
    assert all(line.startswith("saeclamp: ") for line in said[1:]), said
    assert said[-1].startswith("saeclamp: The engine did not start: ")
    assert "head" in said[-1].lower()
    path = Path(said[-1].rpartition("Log: ")[2])
    assert "Traceback" in path.read_text()


def test_an_engine_that_fails_when_its_worker_is_up_ends_the_command_too(tmp_path: Path, tiny: list[str]) -> None:
    """The engine then waits for its worker, which must not take the end for one that the server has not asked for."""
    with (
        pytest.raises(RuntimeError, match="The server ended with status 1") as raised,
        serve(tmp_path / "log", tiny[0], *tiny[1:], "--num-gpu-blocks-override", "1", name="tiny", verbose=False),
    ):
        pytest.fail("it was served")
    assert "memory for the cache blocks" in str(raised.value).splitlines()[-1]
