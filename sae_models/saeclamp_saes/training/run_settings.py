"""Settings of a run besides its training config."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from saeclamp_saes.training.export import SaveDtype


@dataclass(frozen=True)
class RunSettings:
    """Settings of a run besides its training config and its harvest config."""

    out: Path
    """Folder of the run."""
    pool_tokens: int = 1_000_000
    """Vectors in the mixing buffer, at most."""
    dtype: SaveDtype = "float32"
    """Type of the numbers in the finished SAE's files."""
    command: str = ""
    """Command line, noted in the SAE's configuration."""
    log_every: int = 50
    """Steps between two lines of the log."""
    save_every: int = 250
    """Steps between two checkpoints."""
    tensorboard: bool = False
    keep_vectors: bool = False
