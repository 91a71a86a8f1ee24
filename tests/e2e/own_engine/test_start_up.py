"""The whole command: what it refuses before the engine starts, what it shows when it serves, that it ends when killed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from tests.support.bundled import LAYER
from tests.support.fork_server import NURSERY
from tests.support.serving import Process, Server, is_gone, serve, wait_for

from saeclamp_saes.library.reference import BUNDLED
from saeclamp_server.engine.lifeline import STOP_S
from saeclamp_server.packaged_model import PACKAGED_MODEL

GONE_S = 10
"""In which the processes of a server that was killed have noticed."""


def refusal(folder: Path, *flags: str) -> list[str]:
    arguments = ["serve", PACKAGED_MODEL, "--sae", "bundled", *flags]
    process = NURSERY.fork("saeclamp_server", arguments, folder / "log", os.environ)
    assert process.wait(timeout=120) not in (0, None)
    said = (folder / "log").read_text()
    assert "Traceback" not in said
    return [line for line in said.splitlines() if line.startswith("saeclamp")]


@pytest.mark.usefixtures("model_folder")
def test_settings_that_cannot_be_steered_are_refused(tmp_path: Path) -> None:
    assert "--nnodes is not supported with steering yet: all of a server" in refusal(tmp_path, "--nnodes", "2")[-1]
    assert "only the method ngram" in refusal(tmp_path, "--speculative-config", '{"method": "suffix"}')[-1]
    assert "use --dtype bfloat16 or float32" in refusal(tmp_path, "--dtype", "float16")[-1]
    assert "unrecognized arguments: --no-such-flag" in refusal(tmp_path, "--no-such-flag")[-1]


def shifted(folder: Path) -> Path:
    """Copy the bundled SAE, with a configuration that claims a layer far below its own."""
    shutil.copytree(BUNDLED["bundled"], folder)
    cfg = (folder / "cfg.json").read_text()
    assert f"blocks.{LAYER}.hook_resid_post" in cfg
    (folder / "cfg.json").write_text(cfg.replace(f"blocks.{LAYER}.hook_resid_post", "blocks.8.hook_resid_post"))
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server as a user starts it: each of its processes has imported everything itself, which takes a minute."""
    log = tmp_path_factory.mktemp("whole") / "log"
    with serve(log, PACKAGED_MODEL, "--sae", "bundled", "--enforce-eager", verified=True, whole=True) as server:
        yield server


def test_an_sae_that_fits_is_served_and_its_fit_is_shown(whole: Server) -> None:
    assert whole.complete("Hello", max_tokens=1)["choices"]
    assert whole.log is not None
    (line,) = re.findall(
        r"saeclamp: SAE bundled: explains (0\.\d+) .* (\d+) features active per token", whole.log.read_text()
    )
    assert 0.5 <= float(line[0]) <= 1
    assert 1 <= int(line[1]) <= 200


def test_a_server_that_is_killed_leaves_no_process_behind(whole: Server) -> None:
    """Comes after what asks the same server."""
    assert whole.pid is not None
    family = psutil.Process(whole.pid).children(recursive=True)
    assert len(family) >= 2, "the engine, and what watches shared memory"
    clamp = {"op": "clamp", "feature": "bundled/golden-gate", "value": 0.5}
    body = {"model": whole.model, "prompt": "Once upon a time", "stream": True, "ignore_eos": True, "max_tokens": 1900}
    body["steering"] = {"interventions": [clamp]}
    with whole.http.stream("POST", "/v1/completions", json=body) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: {")
        os.kill(whole.pid, signal.SIGKILL)
        with pytest.raises(httpx.TransportError):
            list(lines)
    wait_for(lambda: all(is_gone(process.pid) for process in family), GONE_S, f"left behind: {family}")


@pytest.mark.usefixtures("model_folder")
def test_an_sae_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    flags = ("--sae", f"moved={shifted(tmp_path / 'moved')}", "--enforce-eager")
    with (
        pytest.raises(RuntimeError, match="SAE 'moved' does not fit this model") as raised,
        serve(tmp_path / "log", PACKAGED_MODEL, *flags, verified=True),
    ):
        pytest.fail("it was served")
    assert "--allow-unverified-sae serves it all the same" in str(raised.value)


def is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.usefixtures("model_folder")
@pytest.mark.parametrize("told", ["the process", "its group"])
def test_a_start_that_is_told_to_stop_stops(tmp_path: Path, told: str) -> None:
    log = tmp_path / "log"
    arguments = ["serve", PACKAGED_MODEL, "--sae", "bundled", "--enforce-eager", "--port", "0", "--verbose"]
    if told == "the process":
        command = [sys.executable, "-m", "saeclamp_server", *arguments]
        with log.open("wb") as output:
            process: Process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    else:
        process = NURSERY.fork("saeclamp_server", arguments, log, os.environ)
        wait_for(log.exists, 10, "it has not begun")
    while b"Loading" not in log.read_bytes() and b"EngineCore" not in log.read_bytes():
        assert process.poll() is None, log.read_text()
        time.sleep(0.2)
    if told == "the process":
        process.send_signal(signal.SIGTERM)
    else:
        os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=60) != 0
    deadline = time.monotonic() + STOP_S
    while is_alive(process.pid):
        assert time.monotonic() < deadline, "something of it runs on"
        time.sleep(0.2)


@pytest.mark.usefixtures("model_folder")
def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert refusal(tmp_path, "--port", str(port))[-1] == (
            f"saeclamp: Cannot listen on 127.0.0.1:{port}: Address already in use; choose another --port."
        )
