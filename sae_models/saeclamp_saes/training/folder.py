"""A folder that holds one piece of work, on which one process at a time goes on."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saeclamp_saes.errors import TrainingError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second process away, as long as this one lives."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainingError(f"Another process is at work in {folder}.") from None
        yield


def write_json(path: Path, value: Any) -> None:
    """Replace a file, as a whole or not at all."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def check_identity(path: Path, identity: dict[str, Any]) -> None:
    """Note what the folder is for, or compare with what it is for."""
    if not path.exists():
        if any(path.parent.iterdir()):
            raise TrainingError(f"{path.parent} is not empty and holds no run: give a new folder.")
        write_json(path, identity)
        return
    kept = _flat(json.loads(path.read_text(encoding="utf-8")))
    new = _flat(identity)
    for name in sorted(kept.keys() | new.keys()):
        if kept.get(name) != new.get(name):
            raise TrainingError(
                f"{path.parent} holds a run with another {name} ({kept.get(name)}, and now {new.get(name)}): give a new "
                "folder, or the same settings and data to go on with it."
            )


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    parts = {f"{prefix}{key}": item for key, item in value.items() if not isinstance(item, dict)}
    for key, item in value.items():
        if isinstance(item, dict):
            parts |= _flat(item, f"{prefix}{key} ")
    return parts
