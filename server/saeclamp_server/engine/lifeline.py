"""
Engine and worker processes: they end with the server, and not before it says so.

Ctrl-C in a terminal, and a service manager, signal all processes of a server at once. vLLM's engine would take that for the
end of every request; here it goes on until the server, which waits for these, releases it. And a server that is killed
releases nobody: each process looks whether it is still there.
"""

from __future__ import annotations

import atexit
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

import psutil

ENDS_WITH = "SAECLAMP_SERVER"
"""Variable of the environment that all processes of a server inherit: its id, and a word that no other server has."""

LOOK_S = 0.5
"""Seconds between looks at the server."""
RELEASED = signal.SIGUSR1
"""What the server sends the engine and its workers before vLLM ends them by SIGTERM; others it ends at once."""
TRACKER = "multiprocessing.resource_tracker"
"""In the command of the process that frees shared memory when all others have gone, and then goes too."""


def become_server() -> None:
    """Server process: name it to those that are started from now on."""
    os.environ[ENDS_WITH] = f"{os.getpid()}-{secrets.token_hex(8)}"


def release(engine: Any) -> None:
    """Server process: let the engine and its workers be ended by the next SIGTERM."""
    manager = engine.engine_core.resources.engine_manager
    for one in manager.processes if manager is not None else ():
        with suppress(psutil.Error):
            process = psutil.Process(one.pid)
            for each in (process, *process.children(recursive=True)):
                if not _is_tracker(each):
                    each.send_signal(RELEASED)


def kill_descendants() -> None:
    """Server process: end all processes that it has started, at once."""
    for process in psutil.Process().children(recursive=True):
        _kill(process)


_has_begun = threading.Event()


def begin_serving() -> None:
    """
    Engine or worker process: take no signal for an end from now on, unless the server says so.

    Not before: an engine that fails while it starts ends its workers by SIGTERM, and waits for them.
    """
    _has_begun.set()


class _Shield:
    """A signal's handler that does what it did before until serving begins, and once the server has released the process."""

    def __init__(self, before: Callable[[int, FrameType | None], Any], is_released: threading.Event) -> None:
        self._before, self._is_released = before, is_released

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._is_released.is_set() or not _has_begun.is_set():
            self._before(number, frame)


def tie_to_server() -> None:
    """Engine or worker process: end when the server has ended; and see `begin_serving`. Once is enough."""
    if ENDS_WITH not in os.environ or threading.current_thread() is not threading.main_thread():
        return
    if isinstance(signal.getsignal(signal.SIGTERM), _Shield):
        return
    is_released = threading.Event()
    # of the server's loop, where the process was forked: what is signalled here would be told there, as a second signal
    signal.set_wakeup_fd(-1)
    signal.signal(RELEASED, lambda number, frame: is_released.set())
    for number in (signal.SIGINT, signal.SIGTERM):
        before = signal.getsignal(number)
        if callable(before):
            signal.signal(number, _Shield(before, is_released))
    atexit.register(_leave_at_once, is_released)
    threading.Thread(target=_end_with_server, name="saeclamp-lifeline", daemon=True).start()


def _leave_at_once(is_released: threading.Event) -> None:
    """Leave the rest to the system: vLLM has freed what must be, and Python takes seconds to free all objects one by one."""
    if is_released.is_set():
        leave(0)


def leave(status: int) -> NoReturn:
    """Any of these processes: end when all that matters is done; libraries complain of what is left at a slower end."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _end_with_server() -> None:
    mark = os.environ[ENDS_WITH]
    server_id = int(mark.partition("-")[0])
    engine = _engine_of_worker(server_id)
    try:
        server = psutil.Process(server_id)
        while server.is_running() and server.status() != psutil.STATUS_ZOMBIE:
            time.sleep(LOOK_S)
    except psutil.NoSuchProcess:
        pass
    others = [process for process in psutil.process_iter() if process.pid != os.getpid() and _is_marked(process, mark)]
    for process in (*engine, *others):
        _kill(process)
    os.kill(os.getpid(), signal.SIGKILL)


def _engine_of_worker(server_id: int) -> list[psutil.Process]:
    """Look up a worker's engine; none in the engine itself, nor where the server has gone by now."""
    try:
        parent = psutil.Process(os.getppid())
        return [parent] if parent.ppid() == server_id else []
    except psutil.NoSuchProcess:
        return []


def _is_marked(process: psutil.Process, mark: str) -> bool:
    try:
        return bool(process.environ().get(ENDS_WITH) == mark)
    except psutil.Error:
        return False


def _kill(process: psutil.Process) -> None:
    with suppress(psutil.Error):
        if not _is_tracker(process):
            process.kill()


def _is_tracker(process: psutil.Process) -> bool:
    return TRACKER in " ".join(process.cmdline())
