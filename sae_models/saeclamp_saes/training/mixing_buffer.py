"""
Vectors to train on, in a random order: a pool of bounded size on disk, refilled where it was used up.

A run is rounds. In each the pool is shuffled, a part of it is used, and what was used is replaced by new vectors; the last
round uses all that is left. Data that fit into the pool as a whole are harvested once and used again and again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from saeclamp_saes.errors import TrainingError
from saeclamp_saes.io.vector_files import VectorFile, VectorTable
from saeclamp_saes.io.work_folder import DamagedFolderError, damaged_error, read_json, write_json
from saeclamp_saes.lm.harvest import ActivationStream, Cursor, report_forwards
from saeclamp_saes.progress import ProgressCallback


@dataclass(frozen=True)
class Schedule:
    """How many batches each round uses, so that just as many vectors are harvested as are trained on."""

    num_batches: int
    """Of the run"""
    size: int
    """Of the pool, in batches"""
    num_refills: int

    @classmethod
    def plan(cls, num_batches: int, most: int) -> Schedule:
        """Plan a run with a pool of at most `most` batches, refilled by half or less."""
        size = min(num_batches, max(2, most))
        return cls(num_batches, size, -(-(num_batches - size) // max(1, size // 2)))

    def used(self, round_: int) -> int:
        """Batches that a round uses: equal parts, then all."""
        if round_ >= self.num_refills:
            return self.size
        rest = self.num_batches - self.size
        return rest * (round_ + 1) // self.num_refills - rest * round_ // self.num_refills


@dataclass
class _State:
    """What the pool's file holds, written after the vectors themselves."""

    round: int = 0
    filled: int = 0
    """Vectors that were put in for this round"""
    cursor: Cursor = field(default=Cursor())
    num_rows: int | None = None
    """When the data fit as a whole: how many vectors they are"""


class MixingBuffer:
    """The pool of a run. All that it does is determined by the seed, the data and the round."""

    def __init__(self, table: VectorTable, schedule: Schedule, batch: int, seed: int) -> None:
        """Make a pool of all the vectors there are."""
        self.table = table
        self.schedule = schedule
        self._batch = batch
        self._seed = seed
        self._rows: VectorFile | None = None
        self._state_path: Path | None = None
        self._state = _State(num_rows=len(table))

    @classmethod
    def filled(cls, rows: VectorFile, state_path: Path, schedule: Schedule, batch: int, seed: int) -> MixingBuffer:
        """Make a pool that is filled by a harvest, as far as it was filled before."""
        pool = cls(VectorTable([rows.tensor]), schedule, batch, seed)
        pool._rows, pool._state_path, pool._state = rows, state_path, _State()
        if state_path.exists():
            pool._state = _state_of(state_path)
        return pool

    @property
    def num_rows(self) -> int:
        """Vectors in the pool."""
        return self.schedule.size * self._batch if self._state.num_rows is None else self._state.num_rows

    @property
    def has_all(self) -> bool:
        """Whether the data fit as a whole."""
        return self._state.num_rows is not None

    def fill(self, harvest: ActivationStream | None, round_: int, report: ProgressCallback) -> None:
        """
        Harvest what is missing for a round. What was interrupted goes on: each vector is taken once.

        Rounds come in order, and the one before must have been used up: its vectors are overwritten.
        Raises TrainingError when the data are too few for a batch, DamagedError for a round that the pool cannot come to.
        """
        if self.has_all:
            return
        assert harvest is not None
        assert self._rows is not None
        state = self._state
        if state.round == round_ - 1 and state.filled == len(self._slots(state.round)):
            self._commit(_State(round_, 0, state.cursor, state.num_rows))
        elif state.round != round_:
            assert self._state_path is not None
            raise DamagedFolderError(
                f"The vectors that {self._state_path.parent} holds are not those that its training came to: begin anew in "
                "another folder."
            )
        slots = self._slots(round_)
        while (state := self._state).filled < len(slots):
            done = state.filled - state.cursor.skip
            read = report_forwards(report, "harvesting", done, len(slots), lambda part: part.num_counting)
            vectors, cursor = harvest.take(state.cursor, len(slots) - state.filled, read)
            if len(vectors):
                self._rows.write(slots[state.filled : state.filled + len(vectors)], vectors[:, 0])
                self._commit(_State(round_, state.filled + len(vectors), cursor))
                report("harvesting", self._state.filled, len(slots), {})
            elif round_ == 0:
                self._close(state.filled)
                return
            else:  # all was read: from the first document again
                self._commit(_State(round_, state.filled, Cursor()))

    def _close(self, num_rows: int) -> None:
        check_enough(num_rows, self._batch)
        self._commit(_State(0, num_rows, Cursor(), num_rows))

    def order(self, round_: int) -> Tensor:
        """Which rows a round uses, in which order: (n,) int64, n a multiple of the batch."""
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + round_)
        order = torch.randperm(self.num_rows, generator=generator)
        used = self.num_rows // self._batch if self.has_all else self.schedule.used(round_)
        return order[: used * self._batch]

    def _slots(self, round_: int) -> Tensor:
        """Which rows are filled for a round: all for the first, then those that the round before used up."""
        return torch.arange(self.num_rows) if round_ == 0 else self.order(round_ - 1).sort().values

    def _commit(self, state: _State) -> None:
        assert self._state_path is not None
        write_json(self._state_path, asdict(state))
        self._state = state


def _state_of(path: Path) -> _State:
    match read_json(path):
        case {
            "round": int(round_),
            "filled": int(filled),
            "cursor": [int(document), int(skip)],
            "num_rows": num_rows,
        } if num_rows is None or isinstance(num_rows, int):
            return _State(round_, filled, Cursor(document, skip), num_rows)
    raise damaged_error(path)


def check_enough(num_rows: int, batch: int) -> None:
    """Raise TrainingError when the vectors are too few for a batch."""
    if num_rows < batch:
        raise TrainingError(
            f"The data hold {num_rows} ordinary tokens to train on, fewer than a batch of {batch}: give more data, or a "
            "smaller batch."
        )
