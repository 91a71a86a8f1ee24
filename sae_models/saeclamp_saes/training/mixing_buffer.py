"""
The mixing buffer: vectors to train on in a random order, of bounded number, on disk, refilled where they were used up.

A run consists of rounds. In each the buffer is shuffled, a part of it is used, and the used vectors are replaced by others;
the last round uses all that is left. Data that fit into the buffer as a whole are harvested once and used again and again.
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
    """Numbers of batches that the rounds use, chosen so that as many vectors are harvested as are trained on."""

    num_batches: int
    """Batches of the run."""
    size: int
    """Batches that the buffer holds."""
    num_refills: int

    @classmethod
    def plan(cls, num_batches: int, most: int) -> Schedule:
        """Plan a run with a buffer of at most `most` batches, refilled by half or less."""
        size = min(num_batches, max(2, most))
        return cls(num_batches, size, -(-(num_batches - size) // max(1, size // 2)))

    def used(self, round_: int) -> int:
        """Return the batches that a round uses: equal parts of the buffer, in the last round all of it."""
        if round_ >= self.num_refills:
            return self.size
        rest = self.num_batches - self.size
        return rest * (round_ + 1) // self.num_refills - rest * round_ // self.num_refills


@dataclass
class _State:
    """Progress of the buffer's file, written after the vectors themselves."""

    round: int = 0
    filled: int = 0
    """Vectors that were put in for this round."""
    cursor: Cursor = field(default=Cursor())
    num_rows: int | None = None
    """Number of vectors of data that fit as a whole; None for others."""


class MixingBuffer:
    """The mixing buffer of a run. Its content and order depend on the seed, the data and the round alone."""

    def __init__(self, table: VectorTable, schedule: Schedule, batch: int, seed: int) -> None:
        """Make a buffer that holds all vectors from the start."""
        self.table = table
        self.schedule = schedule
        self._batch = batch
        self._seed = seed
        self._rows: VectorFile | None = None
        self._state_path: Path | None = None
        self._state = _State(num_rows=len(table))

    @classmethod
    def filled(cls, rows: VectorFile, state_path: Path, schedule: Schedule, batch: int, seed: int) -> MixingBuffer:
        """Make a buffer that a harvest fills, from the state of an earlier start if there is one."""
        buffer = cls(VectorTable([rows.tensor]), schedule, batch, seed)
        buffer._rows, buffer._state_path, buffer._state = rows, state_path, _State()
        if state_path.exists():
            buffer._state = _state_of(state_path)
        return buffer

    @property
    def num_rows(self) -> int:
        """Vectors in the buffer."""
        return self.schedule.size * self._batch if self._state.num_rows is None else self._state.num_rows

    @property
    def has_all(self) -> bool:
        """True if the data fit as a whole."""
        return self._state.num_rows is not None

    def fill(self, harvest: ActivationStream | None, round_: int, report: ProgressCallback) -> None:
        """
        Harvest the vectors that a round lacks. An interrupted harvest is resumed: each vector is taken once.

        Rounds come in order, and the one before must have been used up: its vectors are overwritten.
        Raises TrainingError when the data are too few for a batch, DamagedFolderError for a round that is not the next.
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
        """Return the rows that a round uses, in their order: (n,) int64, n a multiple of the batch."""
        # seeds are further apart than runs have rounds, so that no two runs share an order
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + round_)
        order = torch.randperm(self.num_rows, generator=generator)
        used = self.num_rows // self._batch if self.has_all else self.schedule.used(round_)
        return order[: used * self._batch]

    def _slots(self, round_: int) -> Tensor:
        """Return the rows to fill for a round: all for the first, then those that the round before used up."""
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
