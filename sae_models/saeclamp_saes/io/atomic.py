"""Files that appear as a whole and on the disk, or not at all, whatever ends the process or the power."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a file to be written, which takes the place of `path` when the block ends well. Raises OSError."""
    # of this process: two that write the same file must not write into one another's
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        yield unfinished
        fsync(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    fsync(path.parent)  # without which the new name may be lost


def replace_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 as `replacing` does. Raises OSError."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def fsync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
