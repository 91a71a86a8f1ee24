"""An engine and its workers end with the server, and not before it says so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from saeclamp_server.engine.lifeline import RELEASED

LIMIT_S = 60
"""Processes that import little start in a second, but machines may be busy."""


class Family:
    """A server with its engine and worker, in a process group of their own."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "tests.support.lifeline_processes", str(folder)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])}
        self.folder = folder
        self.server = subprocess.Popen(command, start_new_session=True, env=environment)
        self.until(lambda: (folder / "engine").exists(), "not ready")
        self.engine, self.worker = (psutil.Process(int((folder / name).read_text())) for name in ("engine", "worker"))
        self.others = psutil.Process(self.server.pid).children(recursive=True)

    def until(self, is_so: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not is_so():
            assert time.monotonic() < deadline, what
            time.sleep(0.05)

    def are_gone(self) -> bool:
        return not any(is_alive(process) for process in (self.engine, self.worker, *self.others))


def is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


@contextmanager
def family(folder: Path) -> Iterator[Family]:
    one = Family(folder)
    try:
        yield one
    finally:
        with suppress(ProcessLookupError):
            os.killpg(one.server.pid, signal.SIGKILL)
        one.server.wait()


@pytest.mark.parametrize("is_tied", [False, True], ids=["worker-alone-looks", "engine-looks-too"])
def test_a_server_that_is_killed_takes_everything_with_it(tmp_path: Path, is_tied: bool) -> None:
    if is_tied:
        (tmp_path / "engine-is-tied").touch()
    with family(tmp_path) as one:
        one.server.kill()
        one.until(one.are_gone, f"left behind: {one.others}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_ends_none_before_the_server_says_so(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "engine-is-tied").touch()
    with family(tmp_path) as one:
        for _ in range(3):
            os.killpg(one.server.pid, number)
            time.sleep(0.3)
            assert is_alive(one.engine)
            assert is_alive(one.worker)
        one.server.send_signal(signal.SIGUSR2)
        assert one.server.wait(LIMIT_S) == 0
        assert (tmp_path / "stopped").read_text() == "0", "the engine's own handler ended it"
        one.until(one.are_gone, "the worker runs on")


def test_an_engine_that_hears_of_its_end_before_it_is_released_ends_when_it_is(tmp_path: Path) -> None:
    (tmp_path / "engine-is-tied").touch()
    with family(tmp_path) as one:
        one.engine.terminate()
        time.sleep(0.3)
        assert is_alive(one.engine)
        for process in (one.worker, one.engine):
            process.send_signal(RELEASED)
        one.until(lambda: not is_alive(one.engine), "the engine runs on")


def test_an_end_at_once_leaves_nothing(tmp_path: Path) -> None:
    with family(tmp_path) as one:
        one.server.send_signal(signal.SIGHUP)
        assert one.server.wait(LIMIT_S) == 7
        one.until(one.are_gone, f"left behind: {one.others}")


def test_an_engine_that_fails_while_it_starts_ends_its_worker(tmp_path: Path) -> None:
    """Python ends what a process has started by SIGTERM, and waits: a worker that took none was waited for for ever."""
    (tmp_path / "engine-fails").touch()
    with family(tmp_path) as one:
        (tmp_path / "engine-fails-now").touch()
        one.until(lambda: not is_alive(one.engine) and not is_alive(one.worker), "the engine waits for its worker")
