"""A server, an engine and a worker in miniature, for `test_lifeline.py`: each writes its process id when it is ready."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

from saeclamp_server.engine.lifeline import become_server, begin_serving, kill_descendants, release, tie_to_server

SHARE = multiprocessing.get_context("spawn")


_is_ending = threading.Event()


def end(number: int, frame: FrameType | None) -> None:
    """As vLLM's handlers do: the first signal ends the process, and further ones do not disturb that."""
    if not _is_ending.is_set():
        _is_ending.set()
        sys.exit(0)


def ready(folder: Path, name: str) -> None:
    (folder / f"{name}.new").write_text(str(os.getpid()))
    (folder / f"{name}.new").rename(folder / name)


def worker(folder: Path) -> None:
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    tie_to_server()
    tie_to_server()  # an engine that is its own worker is tied twice
    if not (folder / "engine-fails").exists():
        begin_serving()
    ready(folder, "worker")
    while True:
        time.sleep(0.05)


def engine(folder: Path) -> None:
    """As in vLLM, what looks after the server is in the worker alone, until there is a scheduler."""
    child = SHARE.Process(
        target=worker, args=(folder,), daemon=True
    )  # so it is ended, and waited for, when this one ends

    def end_both(number: int, frame: FrameType | None) -> None:
        child.terminate()
        end(number, frame)

    signal.signal(signal.SIGTERM, end_both)
    signal.signal(signal.SIGINT, end_both)
    child.start()
    while not (folder / "worker").exists():
        time.sleep(0.05)
    if (folder / "engine-is-tied").exists():
        tie_to_server()
        begin_serving()
    ready(folder, "engine")
    while child.is_alive() and not (folder / "engine-fails-now").exists():
        time.sleep(0.05)


def server(folder: Path) -> None:
    become_server()
    process = SHARE.Process(target=engine, args=(folder,))
    process.start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def stop(*_: Any) -> None:
        manager = SimpleNamespace(processes=[process])
        release(SimpleNamespace(engine_core=SimpleNamespace(resources=SimpleNamespace(engine_manager=manager))))
        process.terminate()
        process.join(10)
        (folder / "stopped").write_text(str(process.exitcode))

    def at_once(*_: Any) -> None:
        kill_descendants()
        os._exit(7)

    signal.signal(signal.SIGUSR2, stop)
    signal.signal(signal.SIGHUP, at_once)
    while not (folder / "stopped").exists():
        time.sleep(0.05)


if __name__ == "__main__":
    server(Path(sys.argv[1]))
