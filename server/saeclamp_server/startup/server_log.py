"""Output of a server: its own few words to the terminal, vLLM's many to a file, or to the terminal too."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from saeclamp_saes.cli.log_handler import LineHandler
from saeclamp_saes.io.paths import cache_folder

logger = logging.getLogger("saeclamp.server")

KEPT = 20
"""Files of earlier servers that are left."""
TAIL_BYTES = 400_000
"""Bytes at the end of the log in which the reason of a failed start is looked for."""
KEPT_LINES = 2000
"""The engine's last lines, in which the reason of its death is looked for; the server's own may be longer than any tail."""

_PREFIX = re.compile(r"^(?:\([\w ]+ pid=\d+\) ?)?(?:[A-Z]+ \d\d-\d\d [\d:.]+ \[[^\]]*\] ?)?")
"""Prefix that vLLM writes before each line: process, level, time and place."""
_ENGINES = re.compile(r"^\((?:EngineCore|Worker)\w* pid=\d+\)")
"""Beginning of lines that the engine's processes wrote; all others are the server's, which logs clients' mistakes too."""
_FATAL = "EngineCore encountered a fatal error"
"""Words with which an engine begins its last ones."""
_WORKER_DIED = re.compile(r"^Worker proc \S+ died unexpectedly \(exit code: -(\d+)\)")
_ERROR = re.compile(r"^((?:\w+\.)*\w+(?:Error|Exception)|AssertionError): (.+)$")
_CONSEQUENCES = ("Engine core init", "Executor failed", "EngineCore encountered", "WorkerProc init", "cancelled")
"""Beginnings of errors that only say that there was another one."""


class _TerminalHandler(LineHandler):
    """Handler for a terminal; one that has gone is told nothing."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            super().emit(record)


class ServerLog:
    """The terminal as it was when the server began, and the file that took its place for everything else."""

    def __init__(self) -> None:
        self.path: Path | None = None
        """The log file, once there is one."""
        self.handler: LineHandler = _TerminalHandler(os.fdopen(os.dup(sys.stderr.fileno()), "w", buffering=1))
        """Handler of messages, which are for the terminal."""
        self._output: TextIO = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)

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
            return logger.warning(f"no log can be written to {folder} ({exc.strerror}), so it follows here.")
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file, stream.fileno())  # not `sys.stdout = ...`, because the engine's processes inherit descriptors
        os.close(file)
        self.path = path
        _prune(folder)

    def where(self) -> str:
        """Say where to read on."""
        return f"Log: {self.path}" if self.path else "Its log is above."

    def start_error(self) -> str | None:
        """Find the error that kept the engine from starting, in the words of its traceback."""
        return find_error(_tail(self.path)) if self.path else None

    def fatal_error(self) -> str | None:
        """Find the error that ended an engine that ran; None where it said nothing, as one that is killed."""
        if self.path is None:
            return None
        with self.path.open(encoding="utf-8", errors="replace") as file:
            return find_fatal_error("".join(deque((line for line in file if _ENGINES.match(line)), KEPT_LINES)))


def killed(number: int) -> str:
    """Say of what a process died that a signal ended."""
    if number == signal.SIGKILL:
        return "was killed, most likely because memory ran out"
    return f"was killed by signal {number} ({signal.strsignal(number) or 'unknown'})"


def find_error(log: str) -> str | None:
    """Find the last error in a log of vLLM that is not the mere consequence of another."""
    lines = [_PREFIX.sub("", line).strip() for line in log.splitlines()]
    if died := [match for line in lines if (match := _WORKER_DIED.match(line))]:
        return f"a worker {killed(int(died[0][1]))}"
    found = [match for line in lines if (match := _ERROR.match(line))]
    causes = [match for match in found if not match[2].startswith(_CONSEQUENCES)]
    return f"{causes[-1][1].rpartition('.')[2]}: {causes[-1][2].rstrip('.')}" if causes else None


def find_fatal_error(log: str) -> str | None:
    """
    Find in a log of vLLM the error of which an engine died that ran.

    Only what the engine itself wrote is looked at, and only its last words: the server logs what clients did wrong, and a
    step that failed earlier has failed its own requests.
    """
    lines = [line for line in log.splitlines() if _ENGINES.match(line)]
    last = max((number for number, line in enumerate(lines) if _FATAL in line), default=len(lines))
    died = [line for line in lines if _WORKER_DIED.match(_PREFIX.sub("", line))]
    return find_error("\n".join(died + lines[last:]))


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return file.read().decode("utf-8", "replace")


def _prune(folder: Path) -> None:
    """Delete the oldest files; of a server that still runs it would be the name, not what it writes."""
    for path in sorted(folder.glob("serve-*.log"), key=lambda path: path.name)[: -KEPT - 1]:
        path.unlink(missing_ok=True)
