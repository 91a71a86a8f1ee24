"""
Deadlines of connections to PostgreSQL.

libpq waits for an answer for ever, and a host that is frozen, or partitioned off behind something that acknowledges for it,
gives none. So a connection that is in use for too long is cut, and whoever waits for it is told that it is gone.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from typing import Any

LOOK_S = 0.5
"""Seconds between two looks at what is overdue."""


class ConnectionDeadlines:
    """Connections in use, and until when each may be. Its thread is started by the first one, in this process."""

    def __init__(self) -> None:
        # without a lock, which a fork could copy while it is held: each step on the dictionary is one of the interpreter's
        self._until: dict[int, tuple[Any, float]] = {}
        self._watch: threading.Thread | None = None

    def begin(self, connection: Any, seconds: float) -> None:
        """Let a DB-API connection be used for so long from now."""
        self._until[id(connection)] = (connection, time.monotonic() + seconds)
        if self._watch is None or not self._watch.is_alive():  # it is not in a process that was forked
            self._watch = threading.Thread(target=self._cut_overdue, name="database-deadlines", daemon=True)
            self._watch.start()

    def end(self, connection: Any) -> None:
        """Take note that it is no longer used."""
        self._until.pop(id(connection), None)

    def _cut_overdue(self) -> None:
        while True:
            time.sleep(LOOK_S)
            for key, (connection, until) in [*self._until.items()]:
                if time.monotonic() > until and self._until.pop(key, None) is not None:
                    _cut(connection)


def _cut(connection: Any) -> None:
    """End a connection beneath libpq, which then says so to the thread that waits."""
    with suppress(Exception):  # it was closed a moment ago, which each driver says in an exception of its own
        copy = socket.socket(fileno=os.dup(connection.fileno()))
        try:
            copy.shutdown(socket.SHUT_RDWR)
        finally:
            copy.close()
