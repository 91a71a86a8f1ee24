"""
The journal of explanations, JSON lines beside the labels: a line is written when a feature is finished, and kept for good.

A line also holds the counts behind the score, for which the labels have no place. A run resumes from the lines of its own
kind, those with the same `run`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TextIO

from saeclamp_saes.errors import LabelError
from saeclamp_saes.io.locks import exclusive_lock

SUFFIX = ".explained.jsonl"


@dataclass(frozen=True)
class Explained:
    """A feature that was explained, and how the explanation did on held-out examples."""

    index: int
    explanation: str
    source: str
    score: float
    """Balanced accuracy: the mean of the shares of `activating` and of `others` that were told right. 0.5 is chance."""
    activating: int
    """Held-out examples of the feature that were asked about."""
    activating_found: int
    others: int
    """Pieces of text without the feature that were asked about."""
    others_found: int
    """Pieces of `others` that were wrongly taken for the feature's."""
    num_shown: int
    """Examples that the explainer was shown."""


class Journal:
    """The lines of one run, open to be added to."""

    def __init__(self, file: TextIO, run: str, finished: dict[int, Explained]) -> None:
        self._file, self._run = file, run
        self.finished = finished
        """Finished features of the same run, by index."""

    @classmethod
    @contextmanager
    def open(cls, labels: Path, run: str) -> Iterator[Journal]:
        """
        Open the journal of a file of labels, which no second process can while this one has it open.

        run: hash of all that an explanation depends on; lines with another one are passed over
        Raises LabelError for lines that are none of ours.
        """
        path = labels.with_name(f"{labels.name}{SUFFIX}")

        def refuse() -> None:
            raise LabelError(f"Another process is explaining the features in {labels}.")

        try:
            with (
                exclusive_lock(path.with_name(f".{path.name}.lock"), refuse),
                path.open("a+", encoding="utf-8") as file,
            ):
                yield cls(file, run, _finished(path, run))
        except OSError as exc:
            raise LabelError(f"{path} cannot be written: {exc.strerror or exc}.") from None

    def keep(self, explained: Explained) -> None:
        """Write a feature's line, whole and to the disk."""
        self._file.write(json.dumps({"run": self._run, **asdict(explained)}, ensure_ascii=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.finished[explained.index] = explained


def _finished(path: Path, run: str) -> dict[int, Explained]:
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):  # the last line of a process that was killed while it wrote
        os.truncate(path, whole)
    found: dict[int, Explained] = {}
    for number, line in enumerate(data[:whole].splitlines(), 1):
        explained, line_run = _parsed(line, f"{path}, line {number}")
        if line_run == run:
            found[explained.index] = explained
    return found


def _parsed(line: bytes, where: str) -> tuple[Explained, Any]:
    try:
        value = json.loads(line)
        run = value.pop("run")
        return Explained(**{field.name: value[field.name] for field in fields(Explained)}), run
    except (ValueError, AttributeError, KeyError, TypeError):
        raise LabelError(f"{where} is no explanation: move the file away, or delete that line.") from None
