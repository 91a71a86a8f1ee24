"""The feature book: names, maxima and clamps of an SAE's features, in `features.yaml` beside its weights."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from saeclamp_saes.errors import CheckpointError
from saeclamp_saes.io.atomic import replace_text
from saeclamp_saes.io.checkpoint import LABELS, read_config

FEATURE_BOOK = "features.yaml"
GROWING = (FEATURE_BOOK, "calibration.json", LABELS)
"""Files beside an SAE that are no part of it, because calibrating and labelling change them."""
NAME = re.compile(r"[\w.+:,()-]{1,200}")
WIDTH = 120
"""Characters of a line that is written."""

Evidence = Mapping[str, str | float]


@dataclass(frozen=True)
class FeatureNote:
    """The feature book's entry for one feature."""

    index: int
    name: str
    max_act: float | None
    """99.9th percentile of the activation over the calibration corpus, in the encoder's units. None: not measured."""
    clamp: tuple[float, float] | None = None
    """Lowest and highest clamp that works, in multiples of `max_act`. None: not known."""
    best: float | None = None
    """The clamp that works best, in multiples of `max_act`. None: not known."""
    description: str | None = None
    evidence: Evidence | None = None
    """Measurements that `clamp` and `best` rest on."""


def is_growing_file(name: str) -> bool:
    """Tell whether a file is one of `GROWING`; labels beside an SAE that is a file are called after it."""
    return name in GROWING or name.endswith(f".{LABELS}")


def read_feature_book(folder: Path, d_sae: int) -> dict[int, FeatureNote]:
    """Read the notes in a folder, by index; none where there is no book. Raises CheckpointError."""
    path = folder / FEATURE_BOOK
    return _notes(path, read_config(path), d_sae) if path.exists() else {}


def update_feature_book(folder: Path, note: FeatureNote, d_sae: int, source: Path | None = None) -> None:
    """
    Write a note into a folder's book, in place of its feature's old entry; the file is replaced as a whole or not at all.

    Other features' entries stay, and so do the book's notes and a feature's fields that this version does not know.
    Comments are lost.

    source: folder whose book is continued where this one has none
    Raises CheckpointError, and leaves the book as it was, if the new one could not be read.
    """
    path = folder / FEATURE_BOOK
    old = path if path.exists() or source is None else source / FEATURE_BOOK
    book = read_config(old) if old.exists() else {}
    if old.exists():
        _notes(old, book, d_sae)
    items = book.setdefault("features", [])
    item = next((item for item in items if item["index"] == note.index), None)
    if item is None:
        items.append(item := {})
    item.update(_written(note))
    _notes(path, book, d_sae)
    # flow style where all of an entry is plain values, so that a short one takes a line
    text = yaml.safe_dump(book, sort_keys=False, allow_unicode=True, width=WIDTH, default_flow_style=None)
    replace_text(path, text)


def _written(note: FeatureNote) -> dict[str, Any]:
    """Return a note as its entry in the file."""
    entry: dict[str, Any] = {"index": note.index, "name": note.name}
    if note.description is not None:
        entry["description"] = note.description
    entry["max_act"] = note.max_act
    entry["clamp"] = None if note.clamp is None else list(note.clamp)
    entry["best"] = note.best
    if note.evidence is not None:
        entry["evidence"] = dict(note.evidence)
    return entry


def _notes(path: Path, book: Mapping[str, Any], d_sae: int) -> dict[int, FeatureNote]:
    items = book.get("features", [])
    if not isinstance(items, list):
        raise CheckpointError(f"{path}: features must be a list.")
    if not isinstance(book.get("notes"), str | None):
        raise CheckpointError(f"{path}: notes must be text.")
    notes = [_feature_note(path, item, d_sae) for item in items]
    names, indices = {note.name for note in notes}, {note.index for note in notes}
    if not len(names) == len(indices) == len(notes):
        raise CheckpointError(f"{path}: names and indices must be unique.")
    return {note.index: note for note in notes}


def _feature_note(path: Path, item: Any, d_sae: int) -> FeatureNote:
    try:
        index, name, max_act = item["index"], item["name"], item.get("max_act")
    except (TypeError, KeyError, AttributeError) as exc:
        raise CheckpointError(f"{path}: each feature needs an index and a name.") from exc
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < d_sae:
        raise CheckpointError(f"{path}: index {index!r} is outside 0..{d_sae - 1}.")
    # names are addressed as <sae>/<name>, and printed: in a shell command too
    if not isinstance(name, str) or not NAME.fullmatch(name) or name.isdigit():
        raise CheckpointError(
            f"{path}: {name!r} cannot be a feature's name: letters, digits and the signs . _ + - : , ( ) only, and not "
            "a number."
        )
    if max_act is not None and not (_is_number(max_act) and max_act > 0):
        raise CheckpointError(f"{path}: max_act of {name!r} must be a positive number.")
    clamp, best, description = item.get("clamp"), item.get("best"), item.get("description")
    if clamp is not None and not (isinstance(clamp, list) and len(clamp) == 2 and all(map(_is_number, clamp))):
        raise CheckpointError(f"{path}: clamp must be the lowest and the highest value that works.")
    if best is not None and not _is_number(best):
        raise CheckpointError(f"{path}: best of {name!r} must be a number.")
    if not isinstance(description, str | None):
        raise CheckpointError(f"{path}: description of {name!r} must be text.")
    return FeatureNote(
        index,
        name,
        max_act,
        clamp=None if clamp is None else (clamp[0], clamp[1]),
        best=best,
        description=description,
        evidence=_evidence(path, name, item.get("evidence")),
    )


def _evidence(path: Path, name: str, value: Any) -> Evidence | None:
    if value is None:
        return None
    # YAML reads an unquoted 2026-01-31 as a date
    if not isinstance(value, dict) or not all(
        isinstance(key, str) and isinstance(item, str | int | float | date) for key, item in value.items()
    ):
        raise CheckpointError(f"{path}: evidence of {name!r} must be names with numbers or texts.")
    return {key: item.isoformat() if isinstance(item, date) else item for key, item in value.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
