"""Pickles as families publish them, and what the converter makes of one: flat tensors, and the plain values beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saeclamp_saes.io.checkpoint import PICKLES

Unpickled = tuple[dict[Path, dict[str, Tensor]], dict[Path, dict[str, Any]]]


def save(path: Path, content: Mapping[str, Any]) -> Path:
    """Write a pickle, with the folders it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(dict(content), path)
    return path


def load(path: Path) -> Unpickled:
    """Unpickle a file, or every pickle in a folder: tensors by file, and plain values by file."""
    files = [file for file in path.iterdir() if file.suffix in PICKLES] if path.is_dir() else [path]
    contents = {file: torch.load(file, weights_only=True) for file in files if file.suffix in PICKLES}
    return {file: dict(_tensors(content)) for file, content in contents.items()}, {
        file: _plain(content) for file, content in contents.items()
    }


def _tensors(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Tensor]]:
    found: list[tuple[str, Tensor]] = []
    for name, value in content.items():
        if isinstance(value, Tensor):
            found.append((prefix + name, value))
        elif isinstance(value, Mapping):
            found += _tensors(value, f"{prefix}{name}.")
    return found


def _plain(content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _plain(value) if isinstance(value, Mapping) else value
        for name, value in content.items()
        if not isinstance(value, Tensor)
    }
