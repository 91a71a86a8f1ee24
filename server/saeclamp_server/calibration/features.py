"""Features to calibrate, with their maximum activations and concepts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from saeclamp.types import MAX_VALUE
from saeclamp_saes import SAEEntry
from saeclamp_saes.library.feature_book import NAME, FeatureNote, read_feature_book
from saeclamp_server.calibration.concept import Concept, background_texts
from saeclamp_server.calibration.errors import CalibrationError

if TYPE_CHECKING:
    from saeclamp_saes.labelling.table import Feature, LabelTable
    from saeclamp_server.calibration.text_metrics import WordSet

MaxActFrom = Literal["--max-act", "feature book", "labels"]
T = TypeVar("T")
DIGITS = 9
"""Digits of a clamp: as many as tell one float32 from the next, which is what a server computes with."""
MIN_VALUE = 1.2e-38
"""Smallest clamp: below it float32 loses digits, and in the end is 0."""


@dataclass(frozen=True)
class CalibrationTarget:
    """A feature to calibrate."""

    index: int
    name: str | None
    """Name in the feature book; None: it has none, and so gets no entry."""
    description: str | None
    max_act: float
    max_act_from: MaxActFrom
    concept: Concept

    @property
    def title(self) -> str:
        """Name or index, for tables and messages."""
        return self.name or str(self.index)

    def act_at(self, strength: float) -> float:
        """
        Return the activation that a strength clamps the feature to, in the encoder's units.

        strength: in multiples of max_act
        """
        return float(f"{strength * self.max_act:.{DIGITS}g}")

    def check(self, strengths: Sequence[float]) -> None:
        """Raise CalibrationError for a strength whose clamp is outside of what a server takes."""
        for strength in strengths:
            if not MIN_VALUE <= (act := self.act_at(strength)) <= MAX_VALUE:
                raise CalibrationError(
                    f"At {strength:g} x its maximum activation, {self.max_act:g}, feature {self.title} would be clamped to "
                    f"{act:g}, but a server takes from {MIN_VALUE:g} to {MAX_VALUE:g}: give other --strengths, or "
                    "another --max-act."
                )


def read_book(entry: SAEEntry, out: Path) -> Mapping[int, FeatureNote]:
    """Return the feature book that a run extends: the one in `out`, else the SAE's. Raises SAEError."""
    return read_feature_book(out, entry.summary.d_sae) or entry.features


def read_labels(entry: SAEEntry, path: Path | None) -> LabelTable | None:
    """
    Read the SAE's table of labels.

    path: None for the default place, where there need be none
    Raises SAEError where it cannot be read, or belongs to other weights.
    """
    from saeclamp_saes.labelling.table import labels_path, read_labels
    from saeclamp_saes.loaders import read_sae

    where = path or labels_path(entry.path)
    return None if path is None and not where.exists() else read_labels(where, read_sae(entry.path, entry.options))


def split_features(texts: Sequence[str], book: Mapping[int, FeatureNote]) -> list[str]:
    """Split lists at their commas, but for a name that holds some and was given alone."""
    names = {note.name for note in book.values()}
    return [part.strip() for text in texts for part in ([text] if text in names else text.split(",")) if part.strip()]


def resolve(
    features: Sequence[str],
    entry: SAEEntry,
    book: Mapping[int, FeatureNote],
    labels: LabelTable | None,
    words: Mapping[str | None, WordSet],
    max_acts: Mapping[str | None, float],
    similarity: bool = True,
) -> list[CalibrationTarget]:
    """
    Find each feature.

    features:   names, indices, or INDEX=NAME, which names one
    words:      the user's words, by feature as it was written; None stands for the only feature
    max_acts:   the user's maximum activations, likewise
    similarity: True if answers are to be compared with texts
    Raises CalibrationError.
    """
    found = [_find(text, entry, book) for text in features]
    if not found:
        raise CalibrationError("Name at least one feature.")
    doubles = {index for index, _ in found if [index for index, _ in found].count(index) > 1}
    if doubles:
        raise CalibrationError(f"Feature {min(doubles)} is named twice.")
    background = background_texts(labels) if labels else []
    # all ways to write a feature: the options need not write it as --features did
    keys = [
        {text, text.partition("=")[0], str(index), name} for text, (index, name) in zip(features, found, strict=True)
    ]
    given_words = _by_feature(words, keys, "--concept")
    given_scales = _by_feature(max_acts, keys, "--max-act")
    return [
        _target(index, name, book.get(index), labels[index] if labels else None, background, concept, scale, similarity)
        for (index, name), concept, scale in zip(found, given_words, given_scales, strict=True)
    ]


def _target(
    index: int,
    name: str | None,
    note: FeatureNote | None,
    label: Feature | None,
    background: Sequence[str],
    words: WordSet | None,
    max_act: float | None,
    similarity: bool,
) -> CalibrationTarget:
    title = name or str(index)
    # in the order in which they are believed
    scales: dict[MaxActFrom, float | None] = {
        "--max-act": max_act,
        "feature book": note.max_act if note else None,
        "labels": label.max_act if label else None,
    }
    known = next(((source, scale) for source, scale in scales.items() if scale is not None), None)
    if known is None:
        raise CalibrationError(
            f"Feature {title} has no known maximum activation, which strengths are multiples of: make labels with `saeclamp "
            f"label`, or give --max-act {title}=VALUE."
        )
    description = note.description if note else None
    concept = Concept.build(words, description, label, background)
    if not similarity:
        concept = replace(concept, texts=(), texts_from=None)
    if not concept.words and not concept.texts:
        raise CalibrationError(
            f"Nothing tells whether an answer is about feature {title}: give words with --concept '{title}=word;some "
            "phrase', a table of labels with --examples, or a description in the feature book."
        )
    return CalibrationTarget(index, name, description, known[1], known[0], concept)


def _find(text: str, entry: SAEEntry, book: Mapping[int, FeatureNote]) -> tuple[int, str | None]:
    which, equals, new_name = text.partition("=")
    d_sae = entry.summary.d_sae
    if which.isascii() and which.isdigit():
        index = int(which)
        if index >= d_sae:
            raise CalibrationError(f"There is no feature {index}: SAE {entry.name!r} has features 0 to {d_sae - 1}.")
    else:
        named = next((note.index for note in book.values() if note.name == which), None)
        if named is None:
            names = ", ".join(note.name for note in book.values()) or "none"
            raise CalibrationError(f"SAE {entry.name!r} has no feature named {which!r}. Named: {names}.")
        index = named
    if equals and (not NAME.fullmatch(new_name) or new_name.isdigit()):
        raise CalibrationError(f"{new_name!r} cannot be a feature's name: letters, digits and . _ + - : , ( ) only.")
    other = next((note.index for note in book.values() if note.name == new_name and note.index != index), None)
    if other is not None:
        raise CalibrationError(f"{new_name!r} is the name of feature {other} already.")
    note = book.get(index)
    return index, new_name or (note.name if note else None)


def _by_feature(given: Mapping[str | None, T], keys: Sequence[set[str | None]], option: str) -> list[T | None]:
    """Assign an option's values to features: (num_features,), None for a feature without one."""
    if None in given and len(keys) > 1:
        raise CalibrationError(f"{option} must say which of the features it is for: {option} FEATURE=...")
    unknown = next((name for name in given if name is not None and not any(name in own for own in keys)), None)
    if unknown is not None:
        raise CalibrationError(f"{option} is given for {unknown!r}, which is not among --features.")
    return [next((value for name, value in given.items() if name is None or name in own), None) for own in keys]
