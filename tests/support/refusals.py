"""How a file that was made to harm must be refused: with a sentence, in seconds, and without room for what it declares."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from saeclamp_saes.errors import SAEError


@pytest.fixture
def little_memory() -> Iterator[None]:
    """What is refused must be refused without room for it: half a gigabyte more than the process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 29), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def sentence(act: Callable[[], object]) -> str:
    """Return the sentence with which something is refused, after seconds of computing."""
    started = time.process_time()
    with pytest.raises(SAEError) as raised:
        act()
    assert time.process_time() - started < 10
    message = str(raised.value)
    assert message.isprintable()
    assert len(message) < 2000
    return message
