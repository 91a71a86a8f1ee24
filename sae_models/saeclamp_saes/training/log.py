"""
The log of a run: its metrics in `log.csv`, and if wanted for TensorBoard.

Columns: step; tokens trained on; loss; explained_variance of the batch, l0 and dead (a share) in training; learning rate;
tokens_per_second since the line before.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from saeclamp_saes.errors import TrainingError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

COLUMNS = ("step", "tokens", "loss", "explained_variance", "l0", "dead", "lr", "tokens_per_second")


class TrainingLog:
    """A run's log, with a line every so many steps."""

    def __init__(self, folder: Path, step: int, tensorboard: bool = False) -> None:
        """Begin, or resume from a step: lines of later steps, which will be done again, are dropped."""
        self._path = folder / "log.csv"
        lines = self._path.read_text(encoding="utf-8").splitlines()[1:] if self._path.exists() else []
        # a line that was cut off is among the later ones: a checkpoint follows its lines
        kept = [line for line in lines if line.split(",")[0].isdigit() and int(line.split(",")[0]) <= step]
        self._path.write_text("\n".join([",".join(COLUMNS), *kept]) + "\n", encoding="utf-8")
        self._board = _board(folder, step) if tensorboard else None

    def write(self, figures: Mapping[str, float]) -> None:
        """Add a line."""
        with self._path.open("a", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(f"{figures[name]:.9g}" for name in COLUMNS)
        if self._board:
            for name in COLUMNS[2:]:
                self._board.add_scalar(f"training/{name}", figures[name], int(figures["step"]))
            self._board.flush()


def check_tensorboard() -> None:
    """Raise TrainingError when TensorBoard's package is missing."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise TrainingError("Writing for TensorBoard needs its package: pip install tensorboard.") from None


def _board(folder: Path, step: int) -> SummaryWriter:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
