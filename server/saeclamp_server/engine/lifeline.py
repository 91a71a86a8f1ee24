"""
Engine and worker processes: they end with the server, and not before it says so.

Ctrl-C in a terminal, and a service manager, signal all processes of a server at once. vLLM's engine would take that for the
end of every request; here it goes on until the server, which waits for these, releases it. And a server that is killed
releases nobody: each process looks whether it is still there.
"""

from __future__ import annotations

import asyncio
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
"""Variable of the environment that all processes of a server inherit: the server's process id, and a random word."""

LOOK_S = 0.5
"""Seconds between two checks that the server is alive."""
STOP_S = 10
"""Seconds that the engine may take to clean up when the server ends."""
AGAIN_S = 0.2
"""Seconds after which the engine is told again."""
RELEASED = signal.SIGUSR1
"""Signal that the server sends the engine and its workers before vLLM ends them by SIGTERM."""
TRACKER = "multiprocessing.resource_tracker"
"""Part of the command of the process that frees shared memory when all others have gone, and then goes too."""


def become_server() -> None:
    """Server process: make it known to the processes that it starts from now on."""
    # the random word: a process id is used again, and then a later process would be taken for this server
    os.environ[ENDS_WITH] = f"{os.getpid()}-{secrets.token_hex(8)}"


def release(engine: Any) -> None:
    """Server process: let the next SIGTERM end the engine and its workers."""
    manager = engine.engine_core.resources.engine_manager
    for one in manager.processes if manager is not None else ():
        with suppress(psutil.Error):
            process = psutil.Process(one.pid)
            # workers too: vLLM's engine ends them by SIGTERM in its turn, and waits for them
            for each in (process, *process.children(recursive=True)):
                # SIGUSR1 would end the tracker, which has no handler for it
                if not _is_tracker(each):
                    each.send_signal(RELEASED)


async def end_engine(engine: Any) -> None:
    """Server process: end the engine and its workers, when nothing is answered any more."""
    release(engine)
    # before the engine ends, which it would take for its death, and write that with a traceback into the log
    if engine.output_handler is not None:
        engine.output_handler.cancel()
    ended = asyncio.ensure_future(asyncio.to_thread(engine.shutdown, timeout=STOP_S))
    # Python runs handlers in the main thread, and an idle engine's waits. A signal that comes close behind another may be
    # taken by a thread beside it, and the engine would sleep on; the next one wakes it
    while not (await asyncio.wait({ended}, timeout=AGAIN_S))[0]:
        release(engine)
    await ended


def kill_descendants() -> None:
    """Server process: kill all processes that it has started."""
    for process in psutil.Process().children(recursive=True):
        _kill(process)


_has_begun = threading.Event()
"""Set when the process has its first request or step; per process."""


def begin_serving() -> None:
    """
    Engine or worker process: ignore SIGINT and SIGTERM from now on, until the server has released the process.

    Not earlier: an engine that fails while it starts ends its workers by SIGTERM, and waits for them.
    """
    _has_begun.set()


class _Shield:
    """A signal handler that passes the signal on before serving has begun and once the server has released the process."""

    def __init__(self, before: Callable[[int, FrameType | None], Any], is_released: threading.Event) -> None:
        self._before, self._is_released = before, is_released
        self.has_withheld = False
        """True if the signal has come and was not passed on."""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._is_released.is_set() or not _has_begun.is_set():
            self._before(number, frame)
        else:
            self.has_withheld = True


def tie_to_server() -> None:
    """
    Engine or worker process: end when the server has ended, and shield the process from signals (see `begin_serving`).

    Idempotent.
    """
    # Python sets signal handlers in the main thread alone
    if ENDS_WITH not in os.environ or threading.current_thread() is not threading.main_thread():
        return
    if isinstance(signal.getsignal(signal.SIGTERM), _Shield):
        return
    is_released, is_engine = threading.Event(), os.getppid() == _server_id()

    def on_release(number: int, frame: FrameType | None) -> None:
        is_released.set()
        # the SIGTERM that ends the engine follows at once, and two signals are heard by whichever threads are awake: it may
        # have come first. A worker's comes from the engine, when that has ended its steps
        ends = signal.getsignal(signal.SIGTERM)
        if is_engine and isinstance(ends, _Shield) and ends.has_withheld:
            ends(signal.SIGTERM, frame)

    # a forked process has inherited the descriptor by which the server's event loop hears of signals: a signal to this
    # process would reach the server as one of its own
    signal.set_wakeup_fd(-1)
    signal.signal(RELEASED, on_release)
    for number in (signal.SIGINT, signal.SIGTERM):
        before = signal.getsignal(number)
        # SIG_DFL, SIG_IGN and handlers that were not set from Python are not callable
        if callable(before):
            signal.signal(number, _Shield(before, is_released))
    atexit.register(_leave_at_once, is_released)
    threading.Thread(target=_end_with_server, name="saeclamp-lifeline", daemon=True).start()


def _leave_at_once(is_released: threading.Event) -> None:
    """Skip the interpreter's end: vLLM has freed what must be, and Python takes seconds to free all objects one by one."""
    if is_released.is_set():
        leave(0)


def leave(status: int) -> NoReturn:
    """Any of these processes: end at once, after all that matters is done; a slower end makes libraries complain."""
    # `os._exit` flushes nothing
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _end_with_server() -> None:
    mark, server_id = os.environ[ENDS_WITH], _server_id()
    # looked up while the server is there: later the orphaned engine has another parent. By its parent, because a forked
    # engine shows no mark: of a process the system shows the environment that its program was started with
    engine = _engine_of_worker(server_id)
    try:
        server = psutil.Process(server_id)
        # `is_running` compares start times, so a new process with the old id is not taken for the server
        while server.is_running() and server.status() != psutil.STATUS_ZOMBIE:
            time.sleep(LOOK_S)
    except psutil.NoSuchProcess:
        pass
    others = [process for process in psutil.process_iter() if process.pid != os.getpid() and _is_marked(process, mark)]
    # every process ends all others: an engine without a scheduler yet is not tied, and what libraries start never is
    for process in (*engine, *others):
        _kill(process)
    # not `leave`: whatever the main thread waits for, it ends
    os.kill(os.getpid(), signal.SIGKILL)


def _server_id() -> int:
    return int(os.environ[ENDS_WITH].partition("-")[0])


def _engine_of_worker(server_id: int) -> list[psutil.Process]:
    """Look up a worker's engine process; none in the engine itself, nor where the server has gone by now."""
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
