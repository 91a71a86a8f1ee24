"""Published checkpoint layouts, one a file. Each is recognised by its content and read into the canonical SAE."""

from __future__ import annotations

from pathlib import Path

from saeclamp_saes.formats import saelens
from saeclamp_saes.formats.checkpoint import CheckpointError, CheckpointSummary
from saeclamp_saes.sae import SAE

__all__ = ["CheckpointError", "CheckpointSummary", "read_sae", "summarize"]


def read_sae(folder: Path) -> SAE:
    """
    Read a checkpoint.

    Raises CheckpointError with one sentence when the folder holds no layout we know, or one we cannot read exactly.
    """
    return saelens.read(folder)


def summarize(folder: Path) -> CheckpointSummary:
    """Check a checkpoint's configuration and tensor shapes without reading the weights. Raises CheckpointError."""
    return saelens.summarize(folder)
