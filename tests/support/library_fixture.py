"""Looking into a user's library."""

from __future__ import annotations

from pathlib import Path


def kept(library: Path) -> list[str]:
    return sorted(path.name for path in library.iterdir() if path.name != ".lock") if library.is_dir() else []
