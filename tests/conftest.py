"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import settings
from tests.support.messages import kept_messages, unchanged_loggers

WITH_ENGINES = Path(__file__).parent / "e2e"

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


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Mark what starts an engine, so that the rest can be run alone: `make quick`."""
    for item in items:
        if WITH_ENGINES in item.path.parents:
            item.add_marker(pytest.mark.engine)
