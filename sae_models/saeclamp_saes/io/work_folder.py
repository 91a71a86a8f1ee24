"""A folder that holds one piece of work, which one process at a time does or resumes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from saeclamp_saes.errors import TrainingError
from saeclamp_saes.io.atomic import replace_text
from saeclamp_saes.io.locks import exclusive_lock

RUN = "run.json"
"""File of a training run's identity (settings, data, model), beside the SAE's own folder."""
SAE_FOLDER = "sae"
"""Name of the SAE's folder inside its run's."""
LONGEST_SAID = 200
"""Characters of a value in a message."""


class DamagedFolderError(TrainingError):
    """The state that an earlier start of the work left cannot be used. Nothing of it is removed."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second process out of the folder while the block runs. Raises TrainingError if one is in it."""

    def refuse() -> None:
        raise TrainingError(f"Another process is at work in {folder}.")

    with exclusive_lock(folder / "lock", refuse):
        yield


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, replacing it as a whole or not at all."""
    replace_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read an object that `write_json` wrote. Raises DamagedFolderError for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise damaged_error(path)
    return value


def damaged_error(path: Path) -> DamagedFolderError:
    """Return the error for a file of the work whose content is not as it was written."""
    return DamagedFolderError(
        f"{path} is damaged, and without it this work cannot go on: begin anew in another folder."
    )


@contextmanager
def reporting_disk_errors(folder: Path) -> Iterator[None]:
    """Turn errors of the system, for a folder or disk that cannot be written, into a TrainingError."""
    try:
        yield
    except (OSError, SafetensorError) as exc:  # a full disk is either
        reason = getattr(exc, "strerror", None) or str(exc)
        raise TrainingError(f"{folder} cannot be written: {reason}.") from exc


def check_identity(path: Path, identity: dict[str, Any]) -> None:
    """
    Write the folder's identity, or compare with the one it has. Raises TrainingError where they differ.

    identity: JSON-able; in an object called data_sha256 the order counts too, because data are read in it
    """
    if not path.exists():
        if any(path.parent.iterdir()):
            raise TrainingError(f"{path.parent} is not empty and holds no run: give a new folder.")
        write_json(path, identity)
        return
    kept, new = _flat(read_json(path)), _flat(identity)
    for name in sorted(kept.keys() | new.keys()):
        if kept.get(name) != new.get(name):
            raise TrainingError(
                f"{path.parent} holds a run with another {name} ({_short(kept.get(name))}, and now {_short(new.get(name))}"
                "): give a new folder, or the same settings and data to go on with it."
            )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= LONGEST_SAID else f"{text[:LONGEST_SAID]}..."


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    parts = {f"{prefix}{key}": item for key, item in value.items() if not isinstance(item, dict)}
    for key, item in value.items():
        if isinstance(item, dict):
            parts |= _flat(item, f"{prefix}{key} ")
            if key == "data_sha256":
                parts[f"{prefix}order of the data"] = ", ".join(item)
    return parts
