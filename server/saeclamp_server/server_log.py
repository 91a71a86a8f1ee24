"""Where a server's words go: its own few to the terminal, vLLM's many to a file, or to the terminal too."""

from __future__ import annotations

import os
import re
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from saeclamp_server.packaged_model import cache_folder

KEPT = 20
"""Files of earlier servers that are left."""
TAIL_BYTES = 400_000
"""How far back the reason of an end is looked for."""

_PREFIX = re.compile(r"^(?:\([\w ]+ pid=\d+\) ?)?(?:[A-Z]+ \d\d-\d\d [\d:.]+ \[[^\]]*\] ?)?")
"""What vLLM writes before each line: process, level, time and place."""
_KILLED = re.compile(r"^Worker proc \S+ died unexpectedly \(exit code: -9\)")
_ERROR = re.compile(r"^((?:\w+\.)*\w+(?:Error|Exception)|AssertionError): (.+)$")
_CONSEQUENCES = ("Engine core init", "Executor failed", "EngineCore encountered", "WorkerProc init", "cancelled")
"""Beginnings of errors that only say that there was another one."""


class ServerLog:
    """The terminal as it was when the server began, and the file that took its place for everything else."""

    def __init__(self) -> None:
        self.path: Path | None = None
        """The file, once there is one."""
        self._errors: TextIO = os.fdopen(os.dup(sys.stderr.fileno()), "w", buffering=1)
        self._output: TextIO = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)

    def say(self, message: str) -> None:
        """Tell the terminal what is going on; one that has gone is told nothing."""
        with suppress(OSError):
            print(f"saeclamp: {message}", file=self._errors, flush=True)

    def show(self, text: str) -> None:
        """Write a result, which may be piped."""
        with suppress(OSError):
            print(text, file=self._output, flush=True)

    def to_file(self) -> None:
        """From now on, send what this process and those it starts write to a file; where none can be made, leave it."""
        folder = cache_folder() / "logs"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"serve-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
            # requests may be logged, so it is the user's own
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as exc:
            return self.say(f"no log can be written to {folder} ({exc.strerror}), so it follows here.")
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file, stream.fileno())
        os.close(file)
        self.path = path
        _prune(folder)

    def where(self) -> str:
        """Say where to read on."""
        return f"Log: {self.path}" if self.path else "Its log is above."

    def last_error(self) -> str | None:
        """Find the error that ended the engine, in the words of its traceback."""
        return find_error(_tail(self.path)) if self.path else None


def find_error(log: str) -> str | None:
    """Find the last error in a log of vLLM that is not the mere consequence of another."""
    lines = [_PREFIX.sub("", line).strip() for line in log.splitlines()]
    if any(_KILLED.match(line) for line in lines):
        return "a worker was killed, most likely because memory ran out"
    found = [match for line in lines if (match := _ERROR.match(line))]
    causes = [match for match in found if not match[2].startswith(_CONSEQUENCES)]
    return f"{causes[-1][1].rpartition('.')[2]}: {causes[-1][2].rstrip('.')}" if causes else None


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return file.read().decode("utf-8", "replace")


def _prune(folder: Path) -> None:
    """Delete the oldest files; of a server that still runs it would be the name, not what it writes."""
    for path in sorted(folder.glob("serve-*.log"), key=lambda path: path.name)[: -KEPT - 1]:
        path.unlink(missing_ok=True)
