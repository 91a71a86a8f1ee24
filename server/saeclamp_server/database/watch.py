"""Watch over the database: asked now and then whether it answers, so that nobody who wants to know has to wait."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from saeclamp_server.database.connection import Database, DatabaseError

logger = logging.getLogger("saeclamp.server")

EVERY_S = 2.0
ANSWER_S = 3.0
"""Seconds that the database has for an answer to nothing."""


class DatabaseWatch:
    """Knows whether the database answers. It did when the server started, or the server would not have."""

    def __init__(
        self,
        database: Database,
        observe: Callable[[bool], None],
        every_s: float = EVERY_S,
        answer_s: float = ANSWER_S,
    ) -> None:
        """observe: called with every result"""
        self.is_up = True
        self._database, self._observe = database, observe
        self._every_s, self._answer_s = every_s, answer_s
        # a thread of its own: those of requests may all be waiting for the same database
        self._thread = ThreadPoolExecutor(1, "database-watch")
        self._asked: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, in the running event loop, whose end is the watch's."""
        self._observe(self.is_up)
        self._task = asyncio.create_task(self._go_on())

    async def _go_on(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            await self.look()

    async def look(self) -> None:
        """Ask the database, and say in the log what has changed."""
        if self._asked is None or self._asked.done():
            self._asked = asyncio.get_running_loop().run_in_executor(self._thread, self._database.check)
        problem = None
        try:
            await asyncio.wait_for(asyncio.shield(self._asked), self._answer_s)
        except DatabaseError as exc:
            problem = str(exc)
        except TimeoutError:
            problem = f"The database of variants and vectors has not answered for {self._answer_s:g} seconds."
        if problem is not None and self.is_up:
            logger.warning(f"{problem} Until it answers, variants, vectors and lists are refused with 503.")
        if problem is None and not self.is_up:
            logger.info("the database of variants and vectors answers again")
        self.is_up = problem is None
        self._database.is_away = not self.is_up
        self._observe(self.is_up)
