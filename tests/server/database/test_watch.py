"""Whether the database answers is known at once, however long it takes not to answer."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import Any

import pytest

from saeclamp_server.database import DatabaseError
from saeclamp_server.database.watch import DatabaseWatch


class Scripted:
    """A database that answers, refuses, or hangs."""

    def __init__(self) -> None:
        self.is_up, self.hangs = True, threading.Event()
        self.hangs.set()
        self.num_asked = 0

    def check(self) -> None:
        self.num_asked += 1
        self.hangs.wait(10)
        if not self.is_up:
            raise DatabaseError("It is gone.")


def test_an_outage_is_noticed_said_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "saeclamp.server")
    seen: list[bool] = []

    async def go() -> None:
        scripted: Any = Scripted()
        watch = DatabaseWatch(scripted, seen.append, every_s=0.01)
        watch.start()
        assert watch.is_up
        for is_up in (False, True, False):
            scripted.is_up = is_up
            asked = scripted.num_asked
            while scripted.num_asked < asked + 3:
                await asyncio.sleep(0.005)
            assert watch.is_up == is_up

    asyncio.run(go())
    assert [record.message.split()[0] for record in caplog.records] == ["It", "the", "It"]
    assert seen[0] is True
    assert seen[-1] is False


def test_while_the_database_hangs_the_last_answer_stands_and_nobody_waits() -> None:
    async def go() -> None:
        scripted: Any = Scripted()
        watch = DatabaseWatch(scripted, lambda is_up: None, every_s=0.01)
        watch.start()
        scripted.hangs.clear()
        asked = scripted.num_asked
        while scripted.num_asked == asked:
            await asyncio.sleep(0.005)
        begun = time.monotonic()
        assert watch.is_up
        assert time.monotonic() - begun < 0.1
        scripted.is_up = False
        scripted.hangs.set()
        while watch.is_up:
            await asyncio.sleep(0.005)

    asyncio.run(go())
