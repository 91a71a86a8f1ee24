"""
Files of a run, in one folder:

    calibration.json                     the curves, one entry a feature; replaced as a whole or not at all
    features.yaml                        the feature book, with each feature's green zone
    calibration-answers-<settings>.jsonl the answers so far, one line per strength; deleted when all is measured
    calibration-answers-<settings>.kept.jsonl the same, after a run that was told to keep them: never deleted
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from saeclamp_saes.io.atomic import replace_text
from saeclamp_saes.io.locks import exclusive_lock
from saeclamp_server.calibration.errors import CalibrationError
from saeclamp_server.calibration.metrics import MeasuredAnswer

CURVES = "calibration.json"
VERSION = 1
LINE = 160
"""Characters up to which a value in the file of curves takes one line."""

Answers = Mapping[str, Sequence[MeasuredAnswer]]
"""Answers of one strength, by decoding."""


class AnswerKey(NamedTuple):
    """Feature and clamp that answers were steered by; unsteered ones have neither."""

    feature: int | None = None
    """Index of the feature."""
    act: float | None = None


UNSTEERED = AnswerKey()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second process out of a folder. Raises CalibrationError where there is one, or it cannot be written."""
    # the folder itself is locked: a lock on a file in it would be lost when the file is replaced
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise CalibrationError(f"{folder} cannot be used: {exc.strerror}; give another with --out.") from exc
    if not os.access(folder, os.W_OK):
        raise CalibrationError(f"{folder} cannot be written; give another folder with --out.")

    def refuse() -> None:
        raise CalibrationError(f"Another calibration is at work in {folder}.")

    with exclusive_lock(folder / ".calibration.lock", refuse):
        yield


class AnswerJournal:
    """File of the answers so far. Its lines survive a process that dies in the middle of the next one."""

    def __init__(self, folder: Path, settings: str, questions: Mapping[str, Sequence[tuple[int, int | None]]]) -> None:
        """
        Read the file, if there is one.

        settings:  hash of the settings that answers depend on
        questions: prompt's index and seed of each answer of a line, by decoding
        Raises CalibrationError for lines that hold no answers to these questions.
        """
        name = f"calibration-answers-{settings[:12]}"
        self._kept = folder / f"{name}.kept.jsonl"
        self.path = self._kept if self._kept.exists() else folder / f"{name}.jsonl"
        self._questions = questions
        self._answers: dict[AnswerKey, Answers] = {}
        if self.path.exists():
            self._read()

    def __contains__(self, key: AnswerKey) -> bool:
        return key in self._answers

    def __getitem__(self, key: AnswerKey) -> Answers:
        return self._answers[key]

    def add(self, key: AnswerKey, answers: Answers) -> None:
        """Append answers to the file, and sync it."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(key, answers))
            file.flush()
            os.fsync(file.fileno())
        self._answers[key] = answers

    def keep(self) -> None:
        """Keep the file for good, whatever later runs are told."""
        if self.path.exists():
            os.replace(self.path, self._kept)
        self.path = self._kept

    def release(self, done: AbstractSet[AnswerKey]) -> None:
        """
        Drop answers that are not needed any more, and the file when no others are left, unless it is to stay.

        done: keys of answers whose points are in a curve; others are of a run that was stopped, and may go on
        """
        if self.path == self._kept:
            return
        self._answers = {key: answers for key, answers in self._answers.items() if key not in done}
        if self._answers.keys() <= {UNSTEERED}:
            self.path.unlink(missing_ok=True)
            return
        replace_text(self.path, "".join(_line(key, answers) for key, answers in self._answers.items()))

    def _read(self) -> None:
        whole = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                # the last line of a run that was killed while it wrote
                if not line.endswith(b"\n"):
                    break
                try:
                    key, answers = self._parsed(line)
                    self._answers[key] = answers
                except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
                    raise CalibrationError(
                        f"{self.path}, line {number} holds no answers of this calibration: delete that line, or move the "
                        "file away."
                    ) from None
                whole += len(line)
        # so that the next line is not appended to half a line
        os.truncate(self.path, whole)

    def _parsed(self, line: bytes) -> tuple[AnswerKey, Answers]:
        """Parse a line. Raises one of several errors, ValueError among them, where it is none of ours."""
        value = json.loads(line)
        answers = {name: [MeasuredAnswer(**one) for one in some] for name, some in value["answers"].items()}
        asked = {name: [(one.prompt, one.seed) for one in some] for name, some in answers.items()}
        if asked != self._questions or not all(_is_whole(one) for some in answers.values() for one in some):
            raise ValueError
        return AnswerKey(value["feature"], value["act"]), answers


def _line(key: AnswerKey, answers: Answers) -> str:
    value = {**key._asdict(), "answers": {name: [vars(one) for one in some] for name, some in answers.items()}}
    return json.dumps(value, ensure_ascii=False) + "\n"


def _is_whole(answer: MeasuredAnswer) -> bool:
    numbers = (answer.num_tokens, answer.nll, 0.0 if answer.dose is None else answer.dose)
    return isinstance(answer.text, str) and all(map(math.isfinite, numbers))


class CurveFile:
    """The curves of an SAE's features, by index."""

    def __init__(self, folder: Path, sae_sha256: str) -> None:
        """
        Read the file, if there is one.

        sae_sha256: hash of the SAE whose curves these are
        Raises CalibrationError for curves of another SAE, or a file that cannot be read.
        """
        self.path = folder / CURVES
        self.curves: dict[int, dict[str, Any]] = {}
        if not self.path.exists():
            return
        try:
            value = json.loads(self.path.read_text(encoding="utf-8"))
            self.curves = {int(index): curve for index, curve in value["features"].items()}
            known = value["version"] == VERSION
            other = next((curve for curve in self.curves.values() if curve["sae"]["sha256"] != sae_sha256), None)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
            raise CalibrationError(f"{self.path} is no readable file of curves ({exc}): move it away.") from exc
        if not known or other:
            raise CalibrationError(
                f"{self.path} holds curves of {'other weights or options of the SAE' if other else 'another version'}: move "
                "it away, or give another folder with --out."
            )

    def put(self, index: int, curve: dict[str, Any]) -> None:
        """Replace a feature's curve, and keep the others."""
        self.curves[index] = curve
        value = {"version": VERSION, "features": {str(key): self.curves[key] for key in sorted(self.curves)}}
        replace_text(self.path, _laid_out(value) + "\n")


def _laid_out(value: Any, indent: int = 0) -> str:
    """Write JSON, with what fits on a line on one line."""
    short = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if not isinstance(value, dict | list) or len(short) + indent <= LINE:
        return short
    pad = "\n" + " " * (indent + 1)
    if isinstance(value, dict):
        items = [f"{json.dumps(key, ensure_ascii=False)}: {_laid_out(item, indent + 1)}" for key, item in value.items()]
    else:
        items = [_laid_out(item, indent + 1) for item in value]
    open_, close = "{}" if isinstance(value, dict) else "[]"
    return open_ + pad + f",{pad}".join(items) + "\n" + " " * indent + close
