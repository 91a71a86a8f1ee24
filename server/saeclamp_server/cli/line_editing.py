"""Lines as they are typed: edited with the arrow keys, and kept for the next time."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from saeclamp_saes.io.paths import state_folder

MAX_LINES = 1000
"""Lines that are kept."""


def history_file() -> Path:
    """File in which lines are kept."""
    return state_folder() / "chat_history"


@contextmanager
def editable_lines(words: Sequence[str]) -> Iterator[None]:
    """
    Let lines be edited until the block ends; where Python has no readline, they come as the terminal gives them.

    words: that the tabulator completes at the beginning of a line
    """
    if not is_typed():
        yield
        return
    try:
        import readline
    except ImportError:
        yield
        return
    path = history_file()
    with suppress(OSError):  # there is none yet
        readline.read_history_file(path)
    readline.set_history_length(MAX_LINES)
    readline.set_completer_delims("")  # the slash would else be cut off a command
    readline.set_completer(
        lambda text, number: next(iter([word for word in words if text and word.startswith(text)][number:]), None)
    )
    readline.parse_and_bind("tab: complete")
    try:
        yield
    finally:
        readline.set_completer(None)
        with suppress(OSError):  # a chat does not fail because its lines cannot be kept
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)  # before anything is in it, because questions are nobody else's business
            readline.write_history_file(path)


def is_typed() -> bool:
    """Tell whether lines come from somebody at a terminal."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def lines() -> Iterator[tuple[int, str]]:
    """
    Yield lines that are not empty, without the blanks around them, up to the end of the input; Ctrl-C drops a line.

    yields: beside each its number, by which a refusal names a line that nobody sees
    """
    for number in count(1):
        try:
            line = input("> " if is_typed() else "").strip()
        except EOFError:
            if is_typed():
                print()
            return
        except KeyboardInterrupt:
            if not is_typed():
                raise
            print("\nCtrl-D or /quit ends.")
            continue
        if line:
            yield number, line
