"""
The activations store: vectors of several sites of a model, kept on disk to train on as often as one likes.

It is a folder: `harvest.json` holds what the vectors depend on, and each site has a folder with the vectors to train on and
those held out. Row n is of the same token at every site.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saeclamp_saes.errors import SAEError, TrainingError
from saeclamp_saes.io.vector_files import VectorFile, truncate
from saeclamp_saes.io.work_folder import (
    DamagedFolderError,
    check_identity,
    damaged_error,
    locked,
    read_json,
    reporting_disk_errors,
    write_json,
)
from saeclamp_saes.lm.harvest import ActivationReader, ActivationStream, Cursor, d_in_of, report_forwards
from saeclamp_saes.lm.text import bos_id
from saeclamp_saes.progress import ProgressCallback, no_progress
from saeclamp_saes.sites import Site
from saeclamp_saes.training.harvest_config import HarvestConfig, norm_limits_from

IDENTITY, LIMITS, COMPLETE = "harvest.json", "limits.json", "complete.json"
TRAINING, HELD_OUT = "training", "held-out"
DOING = {TRAINING: "harvesting", HELD_OUT: "harvesting held-out documents"}


@dataclass(frozen=True)
class ActivationsStore:
    """A finished harvest on disk."""

    folder: Path
    identity: dict[str, Any]
    """All that the vectors depend on, JSON-able: see `HarvestConfig.identity`."""
    width: int
    num_rows: int
    num_held_out: int
    prepends_bos: bool

    @classmethod
    def open(cls, folder: Path) -> ActivationsStore:
        """Open a store. Raises TrainingError where there is none, an unfinished one, or a damaged one."""
        if not (folder / IDENTITY).exists():
            raise TrainingError(f"{folder} holds no harvested vectors.")
        if not (folder / COMPLETE).exists():
            raise TrainingError(f"The harvest in {folder} is not finished: start the same command again.")
        identity, complete = read_json(folder / IDENTITY), read_json(folder / COMPLETE)
        if not {"sites", "model", "context", "store"} <= identity.keys():
            raise damaged_error(folder / IDENTITY)
        if complete.keys() != {"width", "num_rows", "num_held_out", "prepends_bos"}:
            raise damaged_error(folder / COMPLETE)
        return cls(folder, identity, **complete)

    @property
    def sites(self) -> list[Site]:
        """Sites of the vectors."""
        return [Site.parse(site) for site in self.identity["sites"]]

    def rows(self, site: Site) -> VectorFile:
        """Open the vectors to train on. Raises TrainingError for a site that was not harvested, or a file cut short."""
        return self._rows(site, TRAINING, self.num_rows)

    def held_out(self, site: Site) -> VectorFile:
        """Open the held-out vectors. Raises TrainingError as `rows` does."""
        return self._rows(site, HELD_OUT, self.num_held_out)

    def _rows(self, site: Site, side: str, num_rows: int) -> VectorFile:
        if site not in self.sites:
            raise TrainingError(
                f"{self.folder} holds vectors of {', '.join(map(str, self.sites))}, and none of {site}."
            )
        path = _folder(self.folder, site) / f"{side}.rows"
        return VectorFile(path, num_rows, self.width, self.identity["store"], begun=True)


def write_store(
    folder: Path, wanted: HarvestConfig, reader: ActivationReader, report: ProgressCallback = no_progress
) -> ActivationsStore:
    """
    Harvest into a folder, or resume a harvest.

    Raises TrainingError with a sentence: a folder that holds another harvest, no data, a full disk.
    """
    width = d_in_of(reader)
    identity = wanted.identity(reader)
    with reporting_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        check_identity(folder / IDENTITY, identity)
        with locked(folder):
            if not (folder / COMPLETE).exists():
                try:
                    complete = _harvested(folder, wanted, reader, width, report)
                # nothing of a damaged folder is removed, because the user may be able to put it back
                except DamagedFolderError:
                    raise
                except SAEError:
                    _clear_unless_begun(folder, reader.sites)
                    raise
                # before the files are cut: a store with a tail is whole, and cut files of an unfinished harvest are damaged
                write_json(folder / COMPLETE, complete)
                _give_back(folder, reader.sites, complete)
    return ActivationsStore.open(folder)


def _harvested(
    folder: Path, wanted: HarvestConfig, reader: ActivationReader, width: int, report: ProgressCallback
) -> dict[str, Any]:
    """Harvest both sides; return their widths and numbers of rows, JSON-able."""
    most = {HELD_OUT: wanted.most_held_out, TRAINING: wanted.tokens}
    rows: dict[str, list[VectorFile]] = {HELD_OUT: [], TRAINING: []}
    # all of them, so that a disk without room is known before anything long begins
    for site, side in itertools.product(reader.sites, rows):
        _folder(folder, site).mkdir(exist_ok=True)
        path, begun = _folder(folder, site) / f"{side}.rows", _state(folder, side).exists()
        rows[side].append(VectorFile(path, most[side], width, wanted.store, begun=begun))
    limits = norm_limits_from(folder / LIMITS, reader, wanted.files, report)
    # held-out documents first, so that it is known before the long part if there are too few
    num = {}
    for side in (HELD_OUT, TRAINING):
        harvest = wanted.harvest(reader, limits, held_out=side == HELD_OUT)
        num[side] = fill_in_order(rows[side], harvest, _state(folder, side), most[side], DOING[side], report)
        if side == HELD_OUT:
            check_held_out(num[HELD_OUT])
    if not num[TRAINING]:
        raise TrainingError("No document is left to train on: give more documents, or hold out a smaller share.")
    return {
        "width": width,
        "num_rows": num[TRAINING],
        "num_held_out": num[HELD_OUT],
        "prepends_bos": bool(bos_id(reader.tokenizer)),
    }


def _give_back(folder: Path, sites: Sequence[Site], complete: dict[str, Any]) -> None:
    """Cut the files to the rows that were filled, where the documents were too few for all."""
    for site in sites:
        for side, num_rows in ((TRAINING, complete["num_rows"]), (HELD_OUT, complete["num_held_out"])):
            truncate(_folder(folder, site) / f"{side}.rows", num_rows, complete["width"])


def _clear_unless_begun(folder: Path, sites: Sequence[Site]) -> None:
    """Remove what was refused before there was a vector to train on, so that the folder can be named again."""
    state = _state(folder, TRAINING)
    if state.exists() and read_json(state).get("filled"):
        return
    for site in sites:
        for side in (HELD_OUT, TRAINING):
            (_folder(folder, site) / f"{side}.rows").unlink(missing_ok=True)
            _state(folder, side).unlink(missing_ok=True)
        with suppress(OSError):  # not there, or something else is in it
            _folder(folder, site).rmdir()
    for name in (IDENTITY, LIMITS, "lock"):
        (folder / name).unlink(missing_ok=True)


def check_held_out(num_rows: int) -> None:
    """Raise TrainingError when there is nothing to measure on."""
    if num_rows < 2:
        raise TrainingError("No document was held out to measure on: give more documents, or hold out a larger share.")


def fill_in_order(
    rows: Sequence[VectorFile],
    harvest: ActivationStream,
    state_path: Path,
    most: int,
    doing: str,
    report: ProgressCallback,
) -> int:
    """
    Harvest one site's vectors into each file, in order, until there are `most` or no more documents.

    An interrupted harvest is resumed from `state_path`. Returns the number of rows.
    """
    kept: dict[str, Any] = {"filled": 0, "cursor": Cursor(), "ended": False}
    if state_path.exists():
        kept = read_json(state_path)
        match kept:
            case {"filled": int(), "cursor": [int(), int()], "ended": bool()}:
                pass
            case _:
                raise damaged_error(state_path)
    while kept["filled"] < most and not kept["ended"]:
        filled, cursor = kept["filled"], Cursor(*kept["cursor"])
        read = report_forwards(report, doing, filled - cursor.skip, most, lambda part: part.num_counting)
        vectors, cursor = harvest.take(cursor, most - filled, read)
        if len(vectors):
            for index, file in enumerate(rows):
                file.write(torch.arange(filled, filled + len(vectors)), vectors[:, index])
        kept = {"filled": filled + len(vectors), "cursor": cursor, "ended": not len(vectors)}
        write_json(state_path, kept)
        report(doing, kept["filled"], most, {})
    return int(kept["filled"])


def _state(folder: Path, side: str) -> Path:
    """Return the file with the progress of a side."""
    return folder / f"{side}.json"


def _folder(folder: Path, site: Site) -> Path:
    return folder / str(site).replace(" ", ".")
