"""From names to SAEs: a user's text becomes an address, and that an opened entry with its summary and feature book."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from saeclamp_saes.errors import CheckpointError, SAELibraryError
from saeclamp_saes.io.checkpoint import CheckpointSource
from saeclamp_saes.io.hashes import sha256_of
from saeclamp_saes.library import add as adding
from saeclamp_saes.library import hub, hub_places, user_library
from saeclamp_saes.library.feature_book import FeatureNote, read_feature_book
from saeclamp_saes.library.reference import SAEReference, in_library, parse_reference
from saeclamp_saes.loaders import CheckpointSummary, summarize
from saeclamp_saes.options import Options


class SAEAddress(NamedTuple):
    """Path of an SAE on this machine, and the options it is read with."""

    name: str
    """The name it is served under."""
    path: Path
    """File or folder."""
    options: Options


@dataclass(frozen=True)
class SAEEntry:
    """A served SAE: everything but its weights, which only the engine's worker holds."""

    name: str
    """The name it is addressed by, as in `<name>/<feature>`."""
    path: Path
    options: Options
    sha256: str
    """Hex digest over the weights, and over the configurations and options that their reading depends on."""
    summary: CheckpointSummary
    features: Mapping[int, FeatureNote]

    def index_of(self, feature_name: str) -> int | None:
        """Return the index of a named feature, None if no feature has that name."""
        return next((note.index for note in self.features.values() if note.name == feature_name), None)


def find_sae(text: str) -> SAEAddress:
    """
    Resolve `[NAME=]WHAT[?key=value&key=value]` (see `reference` and `options.OPTIONS`).

    An SAE on the hub must name a commit, or have been added to the library, which records one: nobody's push changes the
    served SAE. An id of the catalogue whose files can be read as they are is added when it is first used. Files at a commit
    are downloaded unless they are in the hub client's cache.

    Raises SAEError with a sentence that says what exists, or what to write.
    """
    found = parse_reference(text)
    found = in_library(found) or found
    listed = found.listed
    if found.path is None and listed and not listed.entry.pickled and found.reference and not found.reference.is_pinned:
        adding.add(text, None, None)
        found = in_library(found) or found
    return SAEAddress(found.name, found.path, found.options) if found.path else _from_hub(text, found)


def open_entry(address: SAEAddress) -> SAEEntry:
    """Check an SAE's configuration, shapes and feature book, and hash its weights. Raises SAEError."""
    name, path, options = address
    try:
        summary = summarize(path, options)
        features = read_feature_book(path if path.is_dir() else path.parent, summary.d_sae)
        digests = {file: sha256_of(file) for file in summary.files}
        if record := user_library.get_record(path):
            user_library.check_unchanged(record, lambda file: digests.get(file) or sha256_of(file))
    except CheckpointError as exc:
        raise SAELibraryError(f"SAE {name!r}: {exc}") from exc
    except OSError as exc:  # not least, because it is being removed
        raise SAELibraryError(f"SAE {name!r} cannot be read: {exc}.") from exc
    return SAEEntry(name, path, options, _hash(list(digests.values()), options), summary, features)


def check_numbers(entry: SAEEntry) -> None:
    """Read an SAE's weights once. Raises SAEError where they hold NaN or infinity: the file is damaged."""
    source = CheckpointSource(entry.path)
    for weights in entry.summary.weights:
        source.open(weights).check_numbers()


def entry_hash(files: Sequence[Path], options: Options) -> str:
    """Return an SAE's hex digest: over weights, configurations that their reading depends on, and options."""
    return _hash([sha256_of(path) for path in files], options)


def _hash(digests: Sequence[str], options: Options) -> str:
    return hashlib.sha256("\n".join([*digests, str(options)]).encode()).hexdigest()


def _from_hub(text: str, found: SAEReference) -> SAEAddress:
    reference = found.reference
    assert reference is not None
    if not reference.is_pinned:
        if not found.listed and len(ids := hub_places.ids_of(reference)) == 1:
            raise SAELibraryError(
                f"{text!r} names no commit, so what it holds could change: write the catalogue's id of it, {ids[0]}, whose "
                "commit is recorded when it is first used, or @COMMIT (40 hexadecimal digits) after the repository."
            )
        raise SAELibraryError(
            f"{text!r} names no commit, so what it holds could change: run `saeclamp sae add {text}` once, which "
            "downloads it and records the commit, or write @COMMIT (40 hexadecimal digits) after the "
            f"{'id' if found.listed else 'repository'}."
        )
    files = hub.list_files(reference, found.options.integer("layer"))
    if files.is_pickled:
        raise SAELibraryError(
            f"{reference} is a pickle, which can run code when it is loaded: run `saeclamp sae add {text}` once, which "
            "downloads it and converts it in a sandbox."
        )
    folder = hub.download(reference, files)
    return SAEAddress(found.name, folder / files.path, files.options_left(found.options))
