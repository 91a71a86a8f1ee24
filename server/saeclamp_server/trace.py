"""`--trace FILE`: a line of JSON for each steered request, written by a thread, so that no answer waits for a disk."""

from __future__ import annotations

import atexit
import errno
import json
import logging
import os
import queue
import stat
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saeclamp_saes.errors import UserError

logger = logging.getLogger("saeclamp.server")

MAX_WAITING = 65_536
"""Lines that wait for a disk that has stopped; those beyond are lost, which is said."""
CLOSE_S = 10
"""Seconds that the end of the server waits for the last lines."""


class TraceError(UserError):
    pass


class Trace:
    """An open file, to which whole lines are appended."""

    def __init__(self, path: Path, *, max_waiting: int = MAX_WAITING, close_s: float = CLOSE_S) -> None:
        """Open or create the file, readable by its owner alone. Raises TraceError."""
        self.path, self._close_s = path, close_s
        self._file = _opened(path)
        self._lines: queue.Queue[bytes | None] = queue.Queue(max_waiting)
        self._thread: threading.Thread | None = None
        self._num_lost = 0
        self._is_torn = False
        """True if the file ends in a part of a line."""

    def write(self, entry: Mapping[str, Any]) -> None:
        """Have a line written, at once or soon."""
        if self._thread is None:  # only now, because the engine's processes are forked from this one
            self._thread = threading.Thread(target=self._run, name="trace", daemon=True)
            self._thread.start()
            atexit.register(self.close)
        try:
            self._lines.put_nowait(json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
        except queue.Full:
            self._lost("it is too slow")

    def close(self) -> None:
        """Write what waits, and end."""
        thread, self._thread = self._thread, None
        if thread is not None:
            atexit.unregister(self.close)
            try:
                self._lines.put(None, timeout=self._close_s)
            except queue.Full:
                return self._lost("it is too slow")
            thread.join(self._close_s)

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._append(line)
            except OSError as exc:
                self._lost(exc.strerror or str(exc))

    def _append(self, line: bytes) -> None:
        self._reopen_if_moved()
        rest = b"\n" + line if self._is_torn else line
        while rest:
            written = os.write(self._file, rest)
            rest = rest[written:]
            self._is_torn = bool(rest)
        if self._num_lost:
            logger.info(f"--trace {self.path}: written again, after {self._num_lost} lines were lost.")
            self._num_lost = 0

    def _reopen_if_moved(self) -> None:
        """Follow the name: whoever rotates logs moves the file away."""
        ours = os.fstat(self._file)
        try:
            named = os.stat(self.path)
        except FileNotFoundError:
            named = None
        if named is None or (named.st_dev, named.st_ino) != (ours.st_dev, ours.st_ino):
            file = os.open(self.path, _FLAGS, 0o600)
            os.set_blocking(file, True)
            os.close(self._file)
            self._file, self._is_torn = file, False

    def _lost(self, reason: str) -> None:
        self._num_lost += 1
        if self._num_lost == 1:
            logger.warning(f"--trace {self.path}: a line was lost, since {reason}. Requests are answered all the same.")


_FLAGS = (
    os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
)  # a pipe nobody reads must not hang the start


def _opened(path: Path) -> int:
    try:
        file = os.open(path, _FLAGS, 0o600)
    except OSError as exc:
        reason = "nobody reads this pipe" if exc.errno == errno.ENXIO else (exc.strerror or str(exc))
        raise TraceError(f"--trace {path}: {reason}.") from exc
    if stat.S_ISREG(os.fstat(file).st_mode) and not _has_room(file):
        os.close(file)
        raise TraceError(f"--trace {path}: no space left on this disk.")
    os.set_blocking(file, True)
    return file


def _has_room(file: int) -> bool:
    disk = os.fstatvfs(file)
    return disk.f_bavail > 0
