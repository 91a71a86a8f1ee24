"""Hashes of files and tensors."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import Tensor

_HASHED_AT_ONCE = 4096
"""Rows that are copied to the CPU and hashed at once, so that a matrix is not in memory twice."""


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensor_sha256(tensor: Tensor, *, at_once: int = _HASHED_AT_ONCE) -> str:
    """Hash a tensor's numbers as float32, little-endian, row after row, and return the hex digest."""
    digest = hashlib.sha256()
    for first in range(0, len(tensor), at_once):
        digest.update(
            tensor[first : first + at_once].float().cpu().contiguous().numpy().astype("<f4", copy=False).tobytes()
        )
    return digest.hexdigest()
