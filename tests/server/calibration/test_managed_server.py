"""The server for the time of a run: it is gone afterwards, however the run ends, and its last words are passed on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from saeclamp_server.calibration.errors import CalibrationError
from saeclamp_server.calibration.managed_server import last_words, managed_server

SERVER = """\
import http.server, json, os, pathlib, signal, subprocess, sys, threading
words = sys.argv[1:]
if "--broken" in words:
    print("Traceback (most recent call last):\\nsaeclamp: The model is broken.", file=sys.stderr)
    sys.exit(1)
if "--coloured" in words:
    print("\x1b[31mRuntimeError: out of memory\x1b[0m \x07", file=sys.stderr)
    sys.exit(1)
# an engine that does not go when its parent does
engine = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"])
pathlib.Path(sys.argv[4], "told.json").write_text(json.dumps([words, os.getpid(), engine.pid]))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/die":
            print("RuntimeError: out of memory\\n  at the end", flush=True)
            os._exit(3)
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(words[-1])), Handler).serve_forever()
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    (tmp_path / "server.py").write_text(SERVER)
    return [sys.executable, str(tmp_path / "server.py")]


def pids(folder: Path) -> list[int]:
    _, server, engine = json.loads((folder / "told.json").read_text())
    return [server, engine]


def are_gone(numbers: list[int]) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if not any(_lives(number) for number in numbers):
            return True
        time.sleep(0.1)
    return False


def _lives(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
    except FileNotFoundError:
        return False


def test_it_answers_while_the_block_runs_and_is_gone_with_its_engine_after_it(
    tmp_path: Path, command: list[str], said: list[str]
) -> None:
    # the SAE's place is where the stand-in writes what it was told
    with managed_server("a-model", str(tmp_path), ["--enforce-eager"], command) as url:
        assert httpx.get(f"{url}/health").status_code == 200
        running = pids(tmp_path)
        assert all(_lives(pid) for pid in running)
    assert are_gone(running)
    told, *_ = json.loads((tmp_path / "told.json").read_text())
    assert told[:5] == ["serve", "a-model", "--sae", str(tmp_path), "--enforce-eager"]
    assert told[5:] == ["--host", "127.0.0.1", "--port", url.rpartition(":")[2]]
    assert said[0].startswith("starting a server")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, CalibrationError])
def test_it_is_gone_when_the_run_breaks_off(tmp_path: Path, command: list[str], error: type[BaseException]) -> None:
    with (
        pytest.raises(error, match="by the test"),
        managed_server("m", str(tmp_path), [], command),
    ):
        raise error("by the test")
    assert are_gone(pids(tmp_path))


def test_a_server_that_does_not_start_says_why(tmp_path: Path, command: list[str]) -> None:
    with (
        pytest.raises(CalibrationError, match=r"^The server did not start: The model is broken\.$"),
        managed_server("m", str(tmp_path), ["--broken"], command),
    ):
        pytest.fail("it has started")


NOISE = """\
Found ulimit of 20000 and failed to increase it: this can cause errors like `OSError: [Errno 24] Too many open files`.
saeclamp: SAE mine: 64 features at resid_post 1; named: none
saeclamp: still starting (20 s) ...
"""
TRACKED = """\
/usr/lib/python3.11/multiprocessing/resource_tracker.py:254: UserWarning: there appear to be 1 leaked semaphore objects
  warnings.warn('resource_tracker: There appear to be %d '
"""
TRACE = 'Traceback (most recent call last):\n  File "x.py", line 1\nRuntimeError: out of memory\n'


@pytest.mark.parametrize(
    ("log", "says"),
    [
        (NOISE + "saeclamp: SAE 'mine' does not fit this model.\n", "SAE 'mine' does not fit this model."),
        (NOISE + "saeclamp: SAE 'mine' does not fit this model.\n" + TRACKED, "SAE 'mine' does not fit this model."),
        (NOISE + TRACE + "saeclamp: The port is taken.\n" + TRACKED, "The port is taken."),
        (NOISE + TRACE + TRACKED, "RuntimeError: out of memory"),
        ("killed\n", "killed"),
        ("", "it said nothing."),
    ],
)
def test_the_reason_is_found_between_what_else_a_server_says(tmp_path: Path, log: str, says: str) -> None:
    (tmp_path / "log").write_text(log)
    assert last_words(tmp_path / "log") == says


def test_what_a_terminal_would_obey_is_escaped_in_a_servers_last_words(tmp_path: Path, command: list[str]) -> None:
    with (
        pytest.raises(CalibrationError, match=r"start: \\x1b\[31mRuntimeError: out of memory\\x1b\[0m \\x07$"),
        managed_server("m", str(tmp_path), ["--coloured"], command),
    ):
        pytest.fail("it has started")


def test_a_server_that_dies_in_the_middle_says_why(tmp_path: Path, command: list[str]) -> None:
    def use() -> None:
        with managed_server("m", str(tmp_path), [], command) as url:
            with pytest.raises(httpx.TransportError):
                httpx.get(f"{url}/die")
            raise CalibrationError("no answer")

    with pytest.raises(CalibrationError, match=r"^The server has ended: RuntimeError: out of memory"):
        use()
    assert are_gone(pids(tmp_path))


def test_a_run_that_is_killed_takes_its_server_with_it(tmp_path: Path, command: list[str]) -> None:
    code = (
        "import sys, time\nfrom saeclamp_server.calibration.managed_server import last_words, managed_server\n"
        f"with managed_server('m', {str(tmp_path)!r}, [], {command!r}):\n"
        "    print('ready', flush=True)\n    time.sleep(600)"
    )
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    while run.stdout.readline() != "ready\n":
        assert run.poll() is None
    server, engine = pids(tmp_path)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    try:
        assert are_gone([server])  # its engine is its own to end
    finally:
        os.kill(engine, signal.SIGKILL)
