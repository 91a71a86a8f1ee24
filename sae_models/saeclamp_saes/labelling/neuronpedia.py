"""
Importing explanations from Neuronpedia's exports: JSON lines, packed with gzip or not, one explanation each.

A line has `modelId`, `layer` (its name for the SAE), `index` (a number, or one in quotes) and `description`, and it may have
`typeName`, `explanationModelName`, `createdAt` and `scores`, a list of `value` with `explanationScoreTypeName`. Other keys,
such as the embedding, are not looked at. Nothing in an export identifies the weights: the user has to know that its numbers
are those of this SAE's features.
"""

from __future__ import annotations

import gzip
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from saeclamp_saes.errors import LabelError
from saeclamp_saes.io.sanitize import one_line
from saeclamp_saes.labelling.table import Explanation

SUFFIXES = (".jsonl", ".jsonl.gz")
GZIP = b"\x1f\x8b"
LONGEST_LINE = 1 << 20
"""Bytes of a line, at most; one with an embedding has some thousands."""
LARGEST_SCORE = 3.4e38
"""Largest score that the labels can hold, as float32."""


class NeuronpediaSource(NamedTuple):
    """An SAE, as Neuronpedia names it."""

    model: str
    source: str

    def __str__(self) -> str:
        return f"{self.model}/{self.source}"


@dataclass(frozen=True)
class ExportLine:
    """One explanation of an export."""

    where: str
    """File and line, for messages."""
    place: NeuronpediaSource
    index: int
    text: str
    made_by: str
    """Maker of the explanation: `<explanation model>/<type>`."""
    scores: Mapping[str, float]
    """Scores by type."""
    created: str
    """Date in ISO 8601; empty where the line gives none."""


@dataclass(frozen=True)
class ImportedLabels:
    """Result of an import; JSON-able through `vars`, but for the explanations."""

    explanations: Mapping[int, Explanation]
    """The chosen explanation of each feature, by index."""
    place: str
    """Neuronpedia's name of the SAE: `model/source`."""
    num_lines: int
    num_empty: int
    """Lines without a text, which were left out."""
    num_choices: int
    """Features with several explanations, of which one was chosen."""
    chosen_by: str
    """Rule of that choice, as half a sentence."""


def read_exports(
    paths: Sequence[Path], num_features: int, place: str | None = None, score_type: str | None = None
) -> ImportedLabels:
    """
    Read exports, and choose one explanation a feature: the best by score, or the newest where there are no scores.

    paths:      files, or folders of them
    place:      `model/source`: only its lines are read; None: all lines must be of one
    score_type: type of the scores to compare and to keep; None: there must be only one type
    Raises LabelError, with file and line, for a line that is no explanation or is of no feature; nothing is half imported.
    """
    lines, num_lines, num_empty = [], 0, 0
    for line in _lines(_files(paths)):
        if place is not None and str(line.place) != place:
            continue
        num_lines += 1
        if line.index >= num_features:
            raise LabelError(
                f"{line.where}: there is no feature {line.index}, the SAE has 0 to {num_features - 1}: these are labels of "
                "another SAE."
            )
        if line.text:
            lines.append(line)
        else:
            num_empty += 1
    if not lines:
        raise LabelError(f"There are no explanations{f' of {place}' if place else ''} in {_listed(paths)}.")
    kind = _score_type(lines, score_type)
    by_feature: dict[int, list[ExportLine]] = {}
    for line in lines:
        by_feature.setdefault(line.index, []).append(line)
    best = {index: _best(choices, kind) for index, choices in sorted(by_feature.items())}
    return ImportedLabels(
        explanations={
            index: Explanation(line.text, f"neuronpedia:{line.made_by}", line.scores.get(kind) if kind else None)
            for index, line in best.items()
        },
        place=str(_only_place(lines)),
        num_lines=num_lines,
        num_empty=num_empty,
        num_choices=sum(len(choices) > 1 for choices in by_feature.values()),
        chosen_by=f"the best by {kind}, else the newest" if kind else "the newest, because none has a score",
    )


def _files(paths: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = [file for file in path.iterdir() if file.is_file() and file.name.endswith(SUFFIXES)]
            if not inside:
                raise LabelError(f"The folder {path} holds no file that ends in {' or '.join(SUFFIXES)}.")
            found += sorted(
                inside, key=lambda file: [int(n) if n.isdigit() else n for n in re.split(r"(\d+)", file.name)]
            )
        elif path.is_file():
            found.append(path)
        else:
            raise LabelError(f"There is no file or folder {path}.")
    return found


def _lines(files: Sequence[Path]) -> Iterator[ExportLine]:
    for path in files:
        for number, data in enumerate(_raw_lines(path), 1):
            if data.strip():
                yield _parsed(data, f"{path}, line {number}")


def _raw_lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            packed = file.read(2) == GZIP
        with gzip.open(path, "rb") if packed else path.open("rb") as file:
            for number in count(1):
                data = file.readline(LONGEST_LINE + 1)
                if len(data) > LONGEST_LINE:
                    raise LabelError(f"{path}, line {number} is longer than {LONGEST_LINE >> 20} MiB.")
                if not data:
                    return
                yield data
    except (EOFError, zlib.error, OSError) as exc:  # a damaged gzip file is any of them
        raise LabelError(f"{path} cannot be read: {exc}.") from None


def _parsed(data: bytes, where: str) -> ExportLine:
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        raise LabelError(f"{where} is not JSON.") from None
    if not isinstance(record, dict):
        raise LabelError(f"{where} is not a JSON object.")
    index, text = record.get("index"), record.get("description")
    if isinstance(index, str) and re.fullmatch(r"[0-9]{1,12}", index):
        index = int(index)
    if not isinstance(index, int) or isinstance(index, bool) or index < 0:
        raise LabelError(f"{where}: its index must be a feature's number, not {record.get('index')!r:.40}.")
    if text is not None and not isinstance(text, str):
        raise LabelError(f"{where}: its description is no text.")
    return ExportLine(
        where=where,
        place=NeuronpediaSource(*(_said(record, key, "?") for key in ("modelId", "layer"))),
        index=index,
        text=one_line(text or ""),
        made_by="/".join(_said(record, key, "unknown") for key in ("explanationModelName", "typeName")),
        scores=_scores(record.get("scores"), where),
        created=_said(record, "createdAt", ""),
    )


def _said(record: dict[str, Any], key: str, otherwise: str) -> str:
    value = record.get(key)
    return one_line(value) if isinstance(value, str) and value else otherwise


def _scores(value: Any, where: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for item in value if isinstance(value, list) else []:
        score = item.get("value") if isinstance(item, dict) else None
        if not isinstance(score, int | float) or isinstance(score, bool) or not abs(score) <= LARGEST_SCORE:
            raise LabelError(
                f"{where}: each of its scores must have a number as its value, of at most {LARGEST_SCORE:g}."
            )
        kind = _said(item, "explanationScoreTypeName", "unknown")
        found[kind] = max(float(score), found.get(kind, -math.inf))
    return found


def _score_type(lines: Sequence[ExportLine], wanted: str | None) -> str | None:
    counts = Counter(kind for line in lines for kind in line.scores)
    if wanted is not None and wanted not in counts:
        raise LabelError(f"No explanation has a score of type {wanted!r}; there are: {', '.join(counts) or 'none'}.")
    if wanted is None and len(counts) > 1:
        raise LabelError(
            f"The explanations have scores of several types, which cannot be compared ({', '.join(sorted(counts))}): name "
            "one with --score-type."
        )
    return wanted or next(iter(counts), None)


def _best(choices: Sequence[ExportLine], kind: str | None) -> ExportLine:
    """Choose the line with the best score, then the newest, then the last."""
    scores = [line.scores.get(kind, -math.inf) if kind else -math.inf for line in choices]
    return max(enumerate(choices), key=lambda item: (scores[item[0]], item[1].created, item[0]))[1]


def _only_place(lines: Sequence[ExportLine]) -> NeuronpediaSource:
    places = {line.place: line for line in reversed(lines)}
    if len(places) > 1:
        first, second = sorted(places)[:2]
        raise LabelError(
            f"These are labels of several SAEs, {first} ({places[first].where}) and {second} ({places[second].where}): "
            f"choose one with --source {first}."
        )
    return lines[0].place


def _listed(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths))
