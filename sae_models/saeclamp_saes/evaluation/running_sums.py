"""The sums of a pass over the data, kept in a file while it runs, so that a stopped pass can be resumed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from saeclamp_saes.errors import VerificationError
from saeclamp_saes.evaluation.accumulators import MetricSums
from saeclamp_saes.io.atomic import replacing
from saeclamp_saes.sae import SAE

NUM_DONE = "num_done"


@dataclass
class RunningSums:
    """Sums over the sequences so far."""

    sums_by_sae: list[MetricSums]
    """Sums for each SAE."""
    num_done: int
    """Sequences that the sums cover."""
    path: Path | None
    """The file; None keeps nothing."""
    save_seconds: float
    """Least number of seconds between two writes of the file."""
    saved: float
    """Time of the last write, on the monotonic clock."""

    @classmethod
    def begin(cls, saes: Sequence[SAE], device: torch.device, path: Path | None, save_seconds: float) -> RunningSums:
        """Begin, or resume from the file. Raises VerificationError, with its name, where that is damaged."""
        sums_by_sae, num_done = [MetricSums.empty(sae, device) for sae in saes], 0
        if path and path.exists():
            kept = _read(path, _named(sums_by_sae, 0), device)
            num_done = int(kept[NUM_DONE])
            sums_by_sae = [
                MetricSums(**{name: kept[f"{index}.{name}"] for name in vars(sums_of_sae)})
                for index, sums_of_sae in enumerate(sums_by_sae)
            ]
        return cls(sums_by_sae, num_done, path, save_seconds, time.monotonic())

    def commit(self, num_done: int) -> None:
        """Note how many sequences are summed, and now and then write the file. Raises VerificationError for a full disk."""
        self.num_done = num_done
        if self.path and time.monotonic() - self.saved >= self.save_seconds:
            _write(self.path, _named(self.sums_by_sae, num_done))
            self.saved = time.monotonic()

    def discard(self) -> None:
        """Remove the file, which is no longer needed."""
        if self.path:
            self.path.unlink(missing_ok=True)


def _named(sums_by_sae: Sequence[MetricSums], num_done: int) -> dict[str, Tensor]:
    sums = {
        f"{index}.{name}": tensor
        for index, sums_of_sae in enumerate(sums_by_sae)
        for name, tensor in vars(sums_of_sae).items()
    }
    return {**sums, NUM_DONE: torch.tensor(num_done)}


def _read(path: Path, like: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Read tensors of the names, shapes and types in `like`. Raises VerificationError for others."""
    try:
        kept = load_file(path, device=str(device))
    except (OSError, SafetensorError):
        raise _damaged(path) from None
    if {name: (t.shape, t.dtype) for name, t in kept.items()} != {name: (t.shape, t.dtype) for name, t in like.items()}:
        raise _damaged(path)
    return kept


def _damaged(path: Path) -> VerificationError:
    return VerificationError(
        f"{path}, which holds what an earlier start of this command measured, is damaged: move it away, and the command "
        "begins anew."
    )


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    """Replace the file, as a whole or not at all. Raises VerificationError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as unfinished:
            save_file(tensors, unfinished)
    except (OSError, SafetensorError) as exc:  # a full disk is either
        raise VerificationError(f"What was measured so far cannot be kept in {path}: {exc}.") from None
