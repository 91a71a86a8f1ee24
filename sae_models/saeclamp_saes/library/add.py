"""Adding to the user's library: copied, downloaded or converted into a folder that appears when all of it is there."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from saeclamp_saes.errors import CheckpointError, SAELibraryError
from saeclamp_saes.io.checkpoint import LABELS, CheckpointSource
from saeclamp_saes.io.contents import CHECKPOINTS
from saeclamp_saes.io.hashes import sha256_of
from saeclamp_saes.library import hub, user_library
from saeclamp_saes.library.checkpoint_files import CheckpointFiles, local_files, select_files
from saeclamp_saes.library.feature_book import is_growing_file, read_feature_book
from saeclamp_saes.library.reference import SAEReference, parse_reference
from saeclamp_saes.library.user_library import LibraryRecord
from saeclamp_saes.loaders import CheckpointSummary, summarize
from saeclamp_saes.options import Options

logger = logging.getLogger("saeclamp.saes")

CONVERTED = "converted"
"""Name of the folder in which a converted SAE is kept."""

NAMES_KEPT = 4
"""Most names of folders around a copied SAE that are tried, as in `gemma-scope-2b-pt-res/layer_20/width_16k`."""


@dataclass(frozen=True)
class CheckpointChoice:
    """An SAE's files on this machine, before they are in the library."""

    source: str
    """Address for the record: on the hub, or an absolute path."""
    folder: Path
    """Folder that `files` are relative to."""
    names: tuple[str, ...]
    """Names of that folder, each with one more folder around; the library keeps the first that reads the same."""
    files: CheckpointFiles
    options: Options
    never_changes: bool
    """True for the hub client's cache, with which the library can share its files."""

    @property
    def path(self) -> Path:
        """File or folder to read."""
        return self.folder / self.files.path


def add(text: str, name: str | None, model: str | None) -> LibraryRecord:
    """
    Add the SAE that a text names (see `reference`) to the user's library. A pickle is converted in a sandbox.

    name:  in the library; None for the one that it would be served under
    model: the model it is for; None for what the catalogue or the checkpoint says
    Raises SAEError, and then leaves nothing behind.
    """
    found = parse_reference(text)
    if found.record:
        raise SAELibraryError(f"{found.record.name!r} is in your library already.")
    name = name or found.name
    with user_library.new_folder(name) as folder:
        checkpoint = _from_hub(found) if found.reference else _from_here(found)
        try:
            path, summary = (_convert if checkpoint.files.is_pickled else _copy)(checkpoint, folder)
            beside = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
            # a book that cannot be read is refused now, not when the SAE is served
            read_feature_book(beside, summary.d_sae)
        except CheckpointError as exc:
            raise SAELibraryError(str(exc)) from exc
        _note_what_the_catalogue_says(found, summary)
        listed = found.listed.entry.model.id if found.listed else summary.model_name
        record = _record(name, checkpoint, folder, path, summary)
        record = replace(record, catalogue=found.catalogue_id, model=model or listed, told=dict(found.options.values))
        user_library.write_record(folder, record)
    return record


def listed_summary(summary: CheckpointSummary) -> dict[str, Any]:
    """Return the part of a summary that listings show, JSON-able."""
    return {
        "format": summary.format,
        "kind": summary.kind,
        "architecture": summary.architecture,
        "reads": [str(site) for site in summary.reads],
        "writes": [str(site) for site in summary.writes],
        "d_in": summary.d_in,
        "d_out": summary.d_out,
        "d_sae": summary.d_sae,
        "unit": summary.unit,
        "approximation": summary.approximation,
    }


def _from_hub(found: SAEReference) -> CheckpointChoice:
    assert found.reference is not None
    reference = hub.pin_revision(found.reference)
    files = hub.list_files(reference, found.options.integer("layer"))
    logger.info(f"fetching {', '.join(files.all)} from {reference.repository} at commit {reference.revision}")
    folder = hub.download(reference, files)
    names = (reference.repository.rpartition("/")[2],)
    return CheckpointChoice(str(reference), folder, names, files, files.options_left(found.options), never_changes=True)


def _from_here(found: SAEReference) -> CheckpointChoice:
    assert found.path is not None
    location, options = _inside_a_run(found.path, found.options)
    root, path, sizes = local_files(location)
    try:
        files = select_files(sizes, path, options.integer("layer"))
    except CheckpointError as exc:
        raise SAELibraryError(f"{found.path}: {exc}") from exc
    around = root.parts[1:][-NAMES_KEPT:] or ("root",)
    names = tuple("/".join(around[-count:]) for count in range(1, len(around) + 1))
    return CheckpointChoice(str(root / path), root, names, files, files.options_left(options), never_changes=False)


def _inside_a_run(path: Path, options: Options) -> tuple[Path, Options]:
    """Find the folder of a training run that `?layer=N` chooses, and return it with the remaining options."""
    if not path.is_dir():
        return path, options
    try:
        folder = CheckpointSource(path, options).weights.parent
    except CheckpointError as exc:
        raise SAELibraryError(str(exc)) from exc
    if folder in (path, path / CHECKPOINTS):
        return path, options
    return folder, Options({key: value for key, value in options.values.items() if key != "layer"})


def _copy(checkpoint: CheckpointChoice, folder: Path) -> tuple[str, CheckpointSummary]:
    """Copy the files, with as many names of the folders around them as their loader needs."""
    original = summarize(checkpoint.path, checkpoint.options)
    copies = folder / ".copies"
    for file in checkpoint.files.all:
        target = copies / file
        target.parent.mkdir(parents=True, exist_ok=True)
        # the hub client's snapshots are links to nameless files
        _place((checkpoint.folder / file).resolve(), target, link=checkpoint.never_changes)
    for name in checkpoint.names:
        named = folder / name
        named.parent.mkdir(parents=True, exist_ok=True)
        copies.rename(named)
        path = f"{name}/{checkpoint.files.path}".rstrip("/")
        with suppress(CheckpointError):
            copied = summarize(folder / path, Options(checkpoint.options.values))
            if listed_summary(copied) == listed_summary(original):
                return path, copied
        named.rename(copies)
        shutil.rmtree(folder / name.partition("/")[0], ignore_errors=True)
    reads, writes = original.reads[0], original.writes[0]
    site_out = f"&site_out={writes.point}.{writes.layer}" if writes != reads else ""
    raise CheckpointError(
        f"{checkpoint.path} is read by what folders far above it are called, which the library does not keep: add "
        f"?site={reads.point}.{reads.layer}{site_out}."
    )


def _place(source: Path, target: Path, link: bool) -> None:
    try:
        if link:
            os.link(source, target)
            return
    except OSError:  # another file system, or one without hard links
        pass
    shutil.copyfile(source, target)


def _convert(checkpoint: CheckpointChoice, folder: Path) -> tuple[str, CheckpointSummary]:
    """Convert the pickle in a sandbox. The result needs no options: they are in its files."""
    from saeclamp_saes.conversion import convert

    logger.info(f"converting {checkpoint.files.weights[-1]} in a sandbox")
    convert(checkpoint.path, folder / CONVERTED, checkpoint.options)
    for file in checkpoint.files.notes:
        name = LABELS if file.endswith(LABELS) else Path(file).name
        shutil.copyfile(checkpoint.folder / file, folder / CONVERTED / name)
    return CONVERTED, summarize(folder / CONVERTED)


def _note_what_the_catalogue_says(found: SAEReference, summary: CheckpointSummary) -> None:
    listed = found.listed
    if listed and (summary.reads[0], summary.writes[0]) != (listed.reads, listed.writes):
        logger.warning(
            f"its files say that it reads {summary.reads[0]} and writes {summary.writes[0]}, which is followed; the "
            f"catalogue says {listed.reads} and {listed.writes}."
        )


def _record(
    name: str, checkpoint: CheckpointChoice, folder: Path, path: str, summary: CheckpointSummary
) -> LibraryRecord:
    pickles = checkpoint.files.weights if checkpoint.files.is_pickled else ()
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not is_growing_file(file.name))
    return LibraryRecord(
        name=name,
        source=checkpoint.source,
        catalogue=None,
        model=None,
        told={},
        path=path,
        options={} if pickles else dict(checkpoint.options.values),
        files=_digests(folder, files),
        converted_from=_digests(checkpoint.folder, [checkpoint.folder / pickle for pickle in pickles]),
        summary=listed_summary(summary),
        added=datetime.now(UTC).date().isoformat(),
    )


def _digests(folder: Path, files: list[Path]) -> Mapping[str, str]:
    return {file.relative_to(folder).as_posix(): sha256_of(file) for file in files}
