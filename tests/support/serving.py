"""Real servers for the end-to-end tests, each in a process group of its own, which is ended by pid."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
from tests.support.fork_server import NURSERY, Forked, Nursery

START_LIMIT_S = 600


class Server:
    """A running `saeclamp serve`."""

    def __init__(self, url: str, model: str, pid: int | None = None, log: Path | None = None) -> None:
        self.url = url
        self.model = model
        self.pid = pid
        self.log = log
        self.http = httpx.Client(base_url=url, timeout=300)
        self.trace: Path | None = None
        """Where it writes its trace, if it does."""
        self.metrics_port: int | None = None
        """Port of its metrics alone, if they have one."""

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.http.post(path, json={"model": self.model, **body})

    def complete(self, prompt: Any, moves: Sequence[dict[str, Any]] = (), **params: Any) -> dict[str, Any]:
        """POST /v1/completions, greedy unless told otherwise; the JSON of a 200."""
        steering = {"steering": {"interventions": list(moves)}} if moves else {}
        response = self.post(
            "/v1/completions", prompt=prompt, **{"temperature": 0, "max_tokens": 8, **params}, **steering
        )
        assert response.status_code == 200, response.text
        result: dict[str, Any] = response.json()
        return result

    def num_sequences(self) -> int:
        """Those that the engine runs or has waiting."""
        metrics = self.http.get("/metrics").text
        found = re.findall(r"^vllm:num_requests_(?:running|waiting)\{.*\} (\S+)$", metrics, re.MULTILINE)
        assert len(found) == 2, metrics
        return sum(int(float(number)) for number in found)

    def trace_of(self, request_id: str) -> list[dict[str, Any]]:
        """Lines of the trace on a request; an earlier one of a later request may be written before."""
        assert self.trace is not None
        deadline = time.monotonic() + 3
        while True:
            lines = [json.loads(line) for line in self.trace.read_text().splitlines()]
            found = [line for line in lines if line["request_id"] == request_id]
            if found or time.monotonic() > deadline:
                return found
            time.sleep(0.05)


def wait_until(holds: Callable[[], bool], seconds: float) -> bool:
    """Wait until something holds; False where it does not in time."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


Process = subprocess.Popen[bytes] | Forked


@contextmanager
def serve(
    log: Path,
    model: str,
    *flags: str,
    name: str | None = None,
    entry: str = "saeclamp_server",
    verified: bool = False,
    whole: bool = False,
    unset: str | None = None,
    verbose: bool = True,
    port: int | None = None,
    nursery: Nursery = NURSERY,
) -> Iterator[Server]:
    """
    Run `saeclamp serve MODEL FLAGS` (or another module with the same arguments) until the block ends.

    verified: False for random SAEs, which fit no model
    whole:    as a user runs it; otherwise it is forked from a process that has imported vLLM, which is sooner ready
    unset:    a variable of the environment that the server is not to have
    verbose:  whether vLLM's log is to be in `log` too, where it can be read when a test fails
    port:     None for one that is free; only for a server that is forked
    nursery:  of one that is forked
    """
    arguments = [
        "serve",
        model,
        *(["--verbose"] if verbose else []),
        *flags,
        *([] if verified else ["--allow-unverified-sae"]),
    ]
    if whole:
        with run_server([sys.executable, "-m", entry, *arguments], log, name or model, unset) as server:
            yield server
        return
    port = port or free_port()
    process = nursery.fork(entry, [*arguments, "--port", str(port)], log, _environment(log, unset))
    with _served(process, port, log, name or model) as server:
        yield server


@contextmanager
def run_server(command: Sequence[str], log: Path, name: str, unset: str | None = None) -> Iterator[Server]:
    """Run a command that takes `--port` and serves `/health`, in a process group of its own, until the block ends."""
    port = free_port()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=_environment(log, unset),
        )
    with _served(process, port, log, name) as server:
        yield server


def _environment(log: Path, unset: str | None) -> dict[str, str]:
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING", **os.environ, "HF_HUB_OFFLINE": "1"}
    environment["XDG_DATA_HOME"] = str(log.parent / "data")  # variants of tests are not the user's
    return {name: value for name, value in environment.items() if name != unset}


@contextmanager
def _served(process: Process, port: int, log: Path, name: str) -> Iterator[Server]:
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(process, url, log)
        yield Server(url, name, process.pid, log)
    finally:
        _end(process)


def _wait_until_ready(process: Process, url: str, log: Path) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"The server ended with status {process.returncode}:\n{log.read_text()[-4000:]}")
        try:
            if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.3)
    raise TimeoutError(f"The server was not ready after {START_LIMIT_S} s:\n{log.read_text()[-4000:]}")


def _end(process: Process) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(20)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # engines do not always go when their parent does


def is_gone(pid: int) -> bool:
    """Tell whether a process has ended, collected by its parent or not."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(is_so: Any, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
