"""
Vectors of several places of a model, kept on disk to train on as often as one likes.

A folder: `harvest.json` says of what, and each place has a folder with the vectors to train on and those held out. Row n is
of the same token at every place.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saeclamp_saes.errors import TrainingError
from saeclamp_saes.sites import Site
from saeclamp_saes.training.folder import check_identity, locked, write_json
from saeclamp_saes.training.harvest import Cursor, Harvest, Reader, width_of
from saeclamp_saes.training.progress import Report, silent
from saeclamp_saes.training.rows import Rows
from saeclamp_saes.training.wanted import Wanted, measured_limits
from saeclamp_saes.verification.text import begin_of

IDENTITY, LIMITS, COMPLETE = "harvest.json", "limits.json", "complete.json"
TRAINING, HELD_OUT = "training", "held-out"
DOING = {TRAINING: "harvesting", HELD_OUT: "harvesting held-out documents"}


@dataclass(frozen=True)
class Store:
    """A finished harvest."""

    folder: Path
    identity: dict[str, Any]
    """What was harvested, JSON-able"""
    width: int
    num_rows: int
    num_held_out: int
    prepends_bos: bool

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Open one. Raises TrainingError where there is none, or an unfinished one."""
        if not (folder / IDENTITY).exists():
            raise TrainingError(f"{folder} holds no harvested vectors.")
        if not (folder / COMPLETE).exists():
            raise TrainingError(f"The harvest in {folder} is not finished: start the same command again.")
        return cls(folder, _read(folder / IDENTITY), **_read(folder / COMPLETE))

    @property
    def sites(self) -> list[Site]:
        """The places."""
        return [Site.parse(site) for site in self.identity["sites"]]

    def rows(self, site: Site) -> Rows:
        """Vectors to train on. Raises TrainingError for a place that was not harvested."""
        return self._rows(site, TRAINING, self.num_rows)

    def held_out(self, site: Site) -> Rows:
        """Vectors to measure on."""
        return self._rows(site, HELD_OUT, self.num_held_out)

    def _rows(self, site: Site, side: str, num_rows: int) -> Rows:
        if site not in self.sites:
            raise TrainingError(
                f"{self.folder} holds vectors of {', '.join(map(str, self.sites))}, and none of {site}."
            )
        return Rows(_folder(self.folder, site) / f"{side}.rows", num_rows, self.width, self.identity["store"])


def harvest_to(folder: Path, wanted: Wanted, reader: Reader, report: Report = silent) -> Store:
    """
    Harvest, or go on with it.

    Raises TrainingError with a sentence: a folder that holds another harvest, no data, a full disk.
    """
    width = width_of(reader)
    identity = wanted.identity(reader)
    folder.mkdir(parents=True, exist_ok=True)
    check_identity(folder / IDENTITY, identity)
    with locked(folder):
        if not (folder / COMPLETE).exists():
            limits = measured_limits(folder / LIMITS, reader, wanted.files)
            num = {}
            for side, most in ((HELD_OUT, wanted.most_held_out), (TRAINING, wanted.tokens)):
                rows = []
                for site in reader.sites:
                    _folder(folder, site).mkdir(exist_ok=True)
                    rows.append(Rows(_folder(folder, site) / f"{side}.rows", most, width, wanted.store))
                harvest = wanted.harvest(reader, limits, held_out=side == HELD_OUT)
                num[side] = fill_in_order(rows, harvest, folder / f"{side}.json", most, DOING[side], report)
            check_held_out(num[HELD_OUT])
            write_json(
                folder / COMPLETE,
                {
                    "width": width,
                    "num_rows": num[TRAINING],
                    "num_held_out": num[HELD_OUT],
                    "prepends_bos": bool(begin_of(reader.tokenizer)),
                },
            )
    return Store.open(folder)


def check_held_out(num_rows: int) -> None:
    """Raise TrainingError when there is nothing to measure on."""
    if num_rows < 2:
        raise TrainingError("No document was held out to measure on: give more documents, or hold out a larger share.")


def fill_in_order(
    rows: Sequence[Rows], harvest: Harvest, state_path: Path, most: int, doing: str, report: Report
) -> int:
    """
    Harvest one place's vectors into each file, in order, until there are `most` or no more documents.

    What was interrupted goes on. Returns how many there are.
    """
    kept: dict[str, Any] = {"filled": 0, "cursor": Cursor(), "ended": False}
    if state_path.exists():
        kept = _read(state_path)
    while kept["filled"] < most and not kept["ended"]:
        filled = kept["filled"]
        vectors, cursor = harvest.take(Cursor(*kept["cursor"]), most - filled)
        if len(vectors):
            for index, file in enumerate(rows):
                file.write(torch.arange(filled, filled + len(vectors)), vectors[:, index])
        kept = {"filled": filled + len(vectors), "cursor": cursor, "ended": not len(vectors)}
        write_json(state_path, kept)
        report(doing, kept["filled"], most, {})
    return int(kept["filled"])


def _folder(folder: Path, site: Site) -> Path:
    return folder / str(site).replace(" ", ".")


def _read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value
