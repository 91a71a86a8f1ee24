"""
Converting a checkpoint, once, into our own layout: safetensors that can be served instead of a pickle.

1. The files to read are found and hashed.
2. A process of its own (`sandbox_launcher`, `sandbox_main`) limits itself, unpickles (`pickles`), reads the checkpoint with
   its family's loader, and writes it into a hidden folder beside the destination.
3. Nothing that process says is believed: the files it wrote are opened and checked here, their provenance is added, and the
   folder is renamed to the destination. A failure or interruption before that leaves nothing behind.
"""

from __future__ import annotations

import json
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from saeclamp_saes.conversion.pickles import check_torch
from saeclamp_saes.conversion.sandbox_launcher import run_sandbox
from saeclamp_saes.conversion.sandbox_main import ConversionRequest, Limits
from saeclamp_saes.errors import CheckpointError, PickledError
from saeclamp_saes.io.atomic import replace_text
from saeclamp_saes.io.checkpoint import PICKLES, CheckpointSource, read_config
from saeclamp_saes.io.hashes import sha256_of
from saeclamp_saes.io.tensors import file_stamp, open_regular
from saeclamp_saes.loaders import FORMATS, CheckpointSummary, native, summarize
from saeclamp_saes.options import Options

__all__ = ["Conversion", "Limits", "convert"]

GIB = 1 << 30


@dataclass(frozen=True)
class Conversion:
    """A converted SAE: its files, and the layout it was read from."""

    path: Path
    """The destination."""
    read_as: str
    """Name of the family whose layout the source was in."""
    summary: CheckpointSummary
    """Summary of the converted SAE."""
    sha256: str
    """Hex digest of the weights that were written."""
    num_bytes: int
    """Size of these weights."""


def limits_for(num_bytes: int) -> Limits:
    """
    Return the limits for converting files of this size.

    Memory: the file's own mapping, and its tensors in fp32, twice as large if it holds half precision; torch takes some too.
    """
    return Limits(
        memory_bytes=3 * num_bytes + 4 * GIB, file_bytes=3 * num_bytes + GIB // 16, cpu_seconds=seconds_for(num_bytes)
    )


def seconds_for(num_bytes: int) -> int:
    """Return the seconds that converting files of this size may take; a gigabyte takes some ten on one core."""
    return 300 + 120 * num_bytes // GIB


def convert(
    source: Path,
    destination: Path,
    options: Options | None = None,
    *,
    limits: Limits | None = None,
    timeout_seconds: float | None = None,
) -> Conversion:
    """
    Read a checkpoint in a sandbox and write it in our own layout.

    source:                  file or folder, a pickle or not
    destination:             a folder that does not exist; those around it are made
    limits, timeout_seconds: by default, from the files' size
    Raises CheckpointError with one sentence; the destination then does not exist.
    """
    if sys.platform != "linux":
        raise CheckpointError("Converting needs Linux, whose limits the sandbox is made of.")
    source, destination, options = source.absolute(), destination.absolute(), options or Options()
    if destination.exists() or destination.is_symlink():
        raise CheckpointError(f"{destination} exists already; converting never overwrites.")
    files = _files(source, options)
    stamps = _stamps(files)
    num_bytes = sum(size for size, _ in stamps)
    origins = [{"file": file.name, "sha256": sha256_of(file), "bytes": file.stat().st_size} for file in files]
    with _room_beside(destination) as room:
        folder = Path(room) / "sae"
        request = ConversionRequest(
            source=str(source),
            pickle=next((str(file) for file in files if file.suffix in PICKLES), None),
            options=str(options),
            folder=str(folder),
            limits=limits or limits_for(num_bytes),
        )
        run_sandbox(request, Path(room), timeout_seconds or seconds_for(num_bytes))
        # otherwise the hashes might be those of other files than the sandbox read
        if _stamps(files) != stamps:
            raise CheckpointError(f"{source} was changed while it was converted.")
        conversion = _checked(folder, destination)
        _add_provenance(folder, conversion, origins, options)
        try:
            folder.rename(destination)
        except OSError as exc:
            raise CheckpointError(f"{destination} cannot be made: {exc.strerror}.") from exc
    return conversion


@contextmanager
def _room_beside(destination: Path) -> Iterator[str]:
    """Make a hidden folder beside the destination, and the folders around it; those that stay empty are removed."""
    missing = [folder for folder in destination.parents if not folder.exists()]
    try:
        try:
            destination.parent.mkdir(parents=True, exist_ok=True)
            temporary = tempfile.TemporaryDirectory(
                prefix=f".{destination.name}.", suffix=".unfinished", dir=destination.parent
            )
        except OSError as exc:
            raise CheckpointError(f"{destination.parent} cannot be written to: {exc.strerror}.") from exc
        with temporary as room:
            yield room
    finally:
        for folder in missing:  # innermost first
            with suppress(OSError):  # it holds what was asked for
                folder.rmdir()


def _files(source: Path, options: Options) -> Sequence[Path]:
    """Find the files that are going to be read: a pickle, or all weights of a readable checkpoint."""
    if not source.exists():
        raise CheckpointError(f"{source.parent} has no {source.name}.")
    try:
        # a copy of the options, because summarizing marks them as used
        return summarize(source, Options(options.values)).weights
    except PickledError:
        check_torch(torch.__version__)
        return (CheckpointSource(source, Options(options.values)).weights,)


def _stamps(files: Sequence[Path]) -> list[tuple[int, int]]:
    stamps = []
    for file in files:
        with open_regular(file) as opened:
            stamps.append(file_stamp(opened))
    return stamps


def _checked(folder: Path, destination: Path) -> Conversion:
    """Check the written files: two regular ones, in our layout, with fitting tensors. Raises CheckpointError."""
    expected = {native.CONFIG, native.WEIGHTS}
    if not stat.S_ISDIR(folder.lstat().st_mode) or {path.name for path in folder.iterdir()} != expected:
        raise CheckpointError(f"Converting to {destination} wrote something else than an SAE.")
    if not all(stat.S_ISREG((folder / name).lstat().st_mode) for name in expected):
        raise CheckpointError(f"Converting to {destination} wrote something else than files.")
    weights = folder / native.WEIGHTS
    try:
        with safe_open(weights, framework="pt") as file:
            file.keys()
    except SafetensorError as exc:
        raise CheckpointError(f"Converting to {destination} wrote a broken file: {exc}.") from exc
    summary = summarize(folder, Options({"format": native.NAME}))
    summary = replace(summary, weights=(destination / native.WEIGHTS,))
    read_as = read_config(folder / native.CONFIG).get("read_as")
    if read_as not in [layout.name for layout in FORMATS]:
        raise CheckpointError(f"Converting to {destination} read an unknown layout.")
    return Conversion(destination, str(read_as), summary, sha256_of(weights), weights.stat().st_size)


def _add_provenance(folder: Path, conversion: Conversion, origins: list[dict[str, Any]], options: Options) -> None:
    config = read_config(folder / native.CONFIG)
    provenance = {
        "read_as": conversion.read_as,
        "options": str(options),
        "converted_from": origins,
        "weights_sha256": conversion.sha256,
        "converted": datetime.now(UTC).date().isoformat(),
        "converted_with": f"torch {torch.__version__}",
    }
    replace_text(folder / native.CONFIG, json.dumps(config | provenance, indent=1) + "\n")
