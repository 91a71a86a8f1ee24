from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.support.scripted_server import ScriptedServer

from saeclamp import Client
from saeclamp._async import transport as async_transport
from saeclamp._sync import transport


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    scripted = ScriptedServer()
    stop = scripted.run()
    yield scripted
    stop()


@pytest.fixture
def client(server: ScriptedServer) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The delays before retries, in seconds, which are not waited for."""
    delays: list[float] = []

    async def append(seconds: float) -> None:
        delays.append(seconds)

    monkeypatch.setattr(transport, "sleep", delays.append)
    monkeypatch.setattr(async_transport, "sleep_async", append)
    return delays
