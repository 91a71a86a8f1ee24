"""Locks between processes. The system drops them when a process dies, however it dies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive_lock(path: Path, when_busy: Callable[[], None] = lambda: None) -> Iterator[None]:
    """
    Hold a lock file until the block ends. Raises OSError where the file cannot be made.

    when_busy: is called where another process holds it, before waiting for that; what it raises ends the wait
    """
    # only here: every command's parser is built of modules that import this one, also where no extra is installed
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        when_busy()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
