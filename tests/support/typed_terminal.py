"""Commands of ours, with nothing but the client installed: piped, or in a terminal where somebody types."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tests.support import without_extras

LIMIT_S = 120
LEFT, UP, CTRL_C, CTRL_D = "\x1b[D", "\x1b[A", "\x03", "\x04"


def run(*words: str, said: str = "", status: int = 0, **environment: str) -> tuple[str, str]:
    """Run a command as after `pip install .`; returns what it prints and what it says beside that."""
    command = [sys.executable, without_extras.__file__, *words]
    known = {name: value for name, value in os.environ.items() if name != "SAECLAMP_API_KEY"}
    done = subprocess.run(command, input=said.encode(), capture_output=True, timeout=60, env={**known, **environment})
    out, err = done.stdout.decode(), done.stderr.decode()
    assert (done.returncode, "Traceback" in err) == (status, False), f"{out}\n{err}"
    return out, err


class Terminal:
    """What stands in it, and what is typed."""

    def __init__(self, descriptor: int, process: subprocess.Popen[bytes]) -> None:
        self._descriptor, self.process = descriptor, process
        self._seen = b""

    @property
    def text(self) -> str:
        """All that was printed, without colours and movements of the cursor."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._seen.decode(errors="replace")).replace("\r", "")

    def type(self, keys: str) -> None:
        os.write(self._descriptor, keys.encode())

    def enter(self, line: str) -> None:
        self.type(f"{line}\r")

    def shows(self, wanted: str, since: int = 0) -> int:
        """Wait for a text behind the first `since` letters; returns where it ends."""
        deadline = time.monotonic() + LIMIT_S
        while wanted not in self.text[since:]:
            assert time.monotonic() < deadline, f"no {wanted!r} in {self.text!r}"
            self._read()
        return self.text.index(wanted, since) + len(wanted)

    def ends(self) -> int:
        """Wait until the command ends; returns its status."""
        deadline = time.monotonic() + LIMIT_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.text
            self._read()
        return self.process.returncode

    def _read(self) -> None:
        if select.select([self._descriptor], [], [], 0.05)[0]:
            try:
                self._seen += os.read(self._descriptor, 65536)
            except OSError:  # the other end is closed
                time.sleep(0.01)


def _take_the_terminal() -> None:
    """Let Ctrl-C be a signal, which whoever started the tests may have told its processes to ignore."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def typed(*words: str, columns: int = 80, rows: int = 24, environment: Mapping[str, str] = {}) -> Iterator[Terminal]:
    """Run a command of ours in a terminal, as after `pip install .`, until the block ends."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    # readline, which pytest imports, leaves the size of its own terminal in the environment of what it starts
    known = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, without_extras.__file__, *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=_take_the_terminal,
        env={**known, "TERM": "xterm", **environment},
    )
    os.close(theirs)
    try:
        yield Terminal(ours, process)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
