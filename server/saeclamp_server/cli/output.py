"""The end of a command whose standard output is closed, or takes no more: one sentence and status 1."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO

FAILED = 1
"""Exit status of a command whose output did not arrive."""


class _OutputError(Exception):
    """The output takes no more. No OSError: commands and argparse have uses of their own for those."""


class _Output(io.TextIOWrapper):
    """The standard output, whose failures can be told from those of other files."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except BrokenPipeError:
            raise
        except OSError as exc:
            raise _OutputError(exc.strerror) from exc

    def flush(self) -> None:
        try:
            super().flush()
        except BrokenPipeError:
            raise
        except OSError as exc:
            raise _OutputError(exc.strerror) from exc


def run_with_checked_output(run: Callable[[], int]) -> int:
    """
    Run a command, and see to it that what it prints has left.

    returns: the command's exit status; 1 where its output is closed or full; 0 where its reader has had enough, as
        `head` has
    """
    output: TextIO | None = sys.stdout
    _open_what_is_closed()
    if output is None:
        return _say("The standard output is closed.")
    if type(output) is io.TextIOWrapper:
        sys.stdout = _Output(
            output.buffer, encoding=output.encoding, errors=output.errors, line_buffering=output.line_buffering
        )
    try:
        status = _status(run)
        sys.stdout.flush()
    except BrokenPipeError:
        _discard()
        return 0
    except _OutputError as exc:
        _discard()
        return _say(f"The standard output takes no more: {exc}.")
    return status


def _status(run: Callable[[], int]) -> int:
    """Run a command and return its exit status, also where it ends by an exception that has one."""
    try:
        return run()
    except SystemExit as exc:
        code: Any = exc.code
        if isinstance(code, str):
            with suppress(OSError):
                print(code, file=sys.stderr, flush=True)
            return 1
        return code or 0


def _say(message: str) -> int:
    with suppress(OSError):
        print(f"saeclamp: {message}", file=sys.stderr, flush=True)
    return FAILED


def _open_what_is_closed() -> None:
    """
    Have closed standard streams read and write nothing.

    Otherwise the next file that is opened would take their place, and `print` to a missing stderr writes to the output.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            with suppress(OSError):
                os.fstat(number)
                continue
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  # open to the end


def _discard() -> None:
    """Let nothing be written any more: Python would try at its end, and fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
