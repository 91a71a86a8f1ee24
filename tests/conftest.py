"""What all tests share."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from tests.support.messages import kept_messages, unchanged_loggers
from xdist.scheduler import LoadFileScheduling

TESTS = Path(__file__).parent
WITH_ENGINES = TESTS / "e2e"
"""Folder of the tests that start engines; `make quick` passes it over."""
ONE_SERVER = WITH_ENGINES / "shared_server"
"""Folder whose tests all ask the same server."""
TOGETHER = tuple(
    path.relative_to(TESTS.parent).as_posix() for path in (ONE_SERVER, WITH_ENGINES / "tiny_engine" / "test_v2_")
)
"""How the paths of tests begin that one process runs: they share a server, or what forks engines in the interpreter."""

# how long a case takes says how busy the machine is
settings.register_profile("saeclamp", deadline=None)
settings.load_profile("saeclamp")


def _keep_to_own_cores() -> None:
    """
    Give each of several pytest processes a share of the cores, and with it the engines that it starts.

    The threads of an engine wait for each other spinning, so two engines on the same cores would starve each other.
    """
    worker, count = os.environ.get("PYTEST_XDIST_WORKER"), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if worker is None or not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    number = int(worker.removeprefix("gw"))
    os.sched_setaffinity(0, set(cores[number::count]) or {cores[number % len(cores)]})


_keep_to_own_cores()

# a shell that starts a run in its background has it ignore Ctrl-C, and so would all that tests start and interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _loggers() -> Iterator[None]:
    """A command that runs in this process sets up the log of the whole process."""
    with unchanged_loggers():
        yield


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What our loggers are told in a test."""
    with kept_messages() as messages:
        yield messages


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In processes side by side, what takes longest comes first, so that they end together."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: (ONE_SERVER not in item.path.parents, not _is_slow(item.path)))


def _is_slow(path: Path) -> bool:
    return WITH_ENGINES in path.parents or path.name in ("test_triton_kernels.py", "test_h200.py")


def pytest_collection_finish() -> None:
    """What is imported by now stays, so that neither collections of garbage nor forks need go through it."""
    gc.freeze()


class OneServerScheduling(LoadFileScheduling):
    """Gives a process whole files, as `--dist loadfile` does, and those together that share what they start."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return next((start for start in TOGETHER if file.startswith(start)), file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneServerScheduling | None:
    """
    Replace what distributes files.

    `--dist loadgroup` would do it too, but adds the group to each test's id, which then neither pytest nor --lf finds again.
    """
    return OneServerScheduling(config, log) if config.getvalue("dist") == "loadfile" else None
