"""Names to folders: where SAEs live, and what is known of their features."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saeclamp_saes.formats import CheckpointError, CheckpointSummary, summarize
from saeclamp_saes.formats.checkpoint import read_json

BUNDLED = {"bundled": Path(__file__).parent / "bundled" / "smollm2-135m-instruct-l23"}
"""SAEs that ship with the project, by the name they are served under."""

FEATURE_BOOK = "features.json"


class SAELibraryError(ValueError):
    """No such SAE, or its files cannot be used; the message is one sentence."""


@dataclass(frozen=True)
class FeatureNote:
    """What the feature book says of one feature."""

    index: int
    name: str
    max_act: float | None
    """99.9th percentile of the activation over the calibration corpus, in the encoder's units. None: not measured."""
    clamp: tuple[float, float] | None = None
    """Lowest and highest clamp that works, in multiples of `max_act`. None: not known."""


@dataclass(frozen=True)
class SAEEntry:
    """A served SAE: everything but its weights, which only the engine's worker holds."""

    name: str
    """The name it is addressed by, as in `<name>/<feature>`."""
    folder: Path
    sha256: str
    """Of the weights file."""
    summary: CheckpointSummary
    features: Mapping[int, FeatureNote]

    def index_of(self, feature_name: str) -> int | None:
        """Index of a named feature, None if no feature has that name."""
        return next((note.index for note in self.features.values() if note.name == feature_name), None)


def find_sae(name_or_path: str) -> tuple[str, Path]:
    """
    Resolve `bundled`, a folder, or `name=folder` to the name it is served under and its folder.

    Raises SAELibraryError with a sentence that says what exists.
    """
    if name_or_path in BUNDLED:
        return name_or_path, BUNDLED[name_or_path]
    is_folder = Path(name_or_path).expanduser().is_dir()  # a folder's own name may hold "="
    name, named, path = ("", "", name_or_path) if is_folder else name_or_path.partition("=")
    path = path if named else name_or_path
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise SAELibraryError(
            f"No SAE {name_or_path!r}: it is neither a folder nor a bundled SAE ({', '.join(BUNDLED)})."
        )
    name = name if named else folder.resolve().name
    if not name or any(char == "/" or char.isspace() for char in name):
        raise SAELibraryError(
            f"SAE name {name!r} must be non-empty and without '/' or blanks; name it with --sae NAME={path}."
        )
    return name, folder


def open_entry(name: str, folder: Path) -> SAEEntry:
    """Check a folder's configuration, shapes and feature book, and hash its weights. Raises SAELibraryError."""
    try:
        summary = summarize(folder)
        features = _feature_book(folder, summary.d_sae)
    except CheckpointError as exc:
        raise SAELibraryError(f"SAE {name!r}: {exc}") from exc
    return SAEEntry(name, folder, sha256_of(summary.weights), summary, features)


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _feature_book(folder: Path, d_sae: int) -> dict[int, FeatureNote]:
    path = folder / FEATURE_BOOK
    if not path.exists():
        return {}
    notes = [_feature_note(path, item, d_sae) for item in read_json(path).get("features", [])]
    names, indices = {note.name for note in notes}, {note.index for note in notes}
    if not len(names) == len(indices) == len(notes):
        raise CheckpointError(f"{path}: names and indices must be unique.")
    return {note.index: note for note in notes}


def _feature_note(path: Path, item: Any, d_sae: int) -> FeatureNote:
    try:
        note = FeatureNote(item["index"], item["name"], item.get("max_act"), _range(path, item.get("clamp")))
    except (TypeError, KeyError, AttributeError) as exc:
        raise CheckpointError(f"{path}: each feature needs an index and a name.") from exc
    if not isinstance(note.index, int) or not 0 <= note.index < d_sae:
        raise CheckpointError(f"{path}: index {note.index!r} is outside 0..{d_sae - 1}.")
    if not isinstance(note.name, str) or not note.name or note.name.isdigit() or "/" in note.name:
        raise CheckpointError(f"{path}: {note.name!r} cannot be a feature's name: it must not be a number or hold '/'.")
    if note.max_act is not None and not (
        isinstance(note.max_act, int | float) and math.isfinite(note.max_act) and note.max_act > 0
    ):
        raise CheckpointError(f"{path}: max_act of {note.name!r} must be a positive number.")
    return note


def _range(path: Path, value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    if not (isinstance(value, list) and len(value) == 2 and all(isinstance(end, int | float) for end in value)):
        raise CheckpointError(f"{path}: clamp must be the lowest and the highest value that works.")
    return value[0], value[1]
