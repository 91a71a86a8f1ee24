"""What a run is asked for, besides its recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from saeclamp_saes.training.export import SaveDtype


@dataclass(frozen=True)
class RunSettings:
    """Everything of a run but its recipe and what is harvested."""

    out: Path
    """Its folder"""
    pool_tokens: int = 1_000_000
    """How many vectors are kept on disk, at most, and shuffled"""
    dtype: SaveDtype = "float32"
    """Of the finished SAE's files"""
    command: str = ""
    """Noted in the configuration"""
    log_every: int = 50
    """Steps"""
    save_every: int = 250
    """Steps"""
    tensorboard: bool = False
    keep_vectors: bool = False
