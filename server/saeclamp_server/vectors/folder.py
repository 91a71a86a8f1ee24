"""The folder in which vectors lay before the database kept them: its files are taken over once."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path

from saeclamp_saes.io.paths import cache_folder
from saeclamp_server.errors import InvalidVectorError, RequestError
from saeclamp_server.vectors.vector_file import MAX_BYTES, SteeringVector, check_name

logger = logging.getLogger("saeclamp.server")

SUFFIX = ".safetensors"
TAKEN = "taken-over"
"""Folder within it to which a file is moved when the database has its vector."""


def default_folder(model: str) -> Path:
    """Return the default folder of a model's vectors: one per model, whoever serves it."""
    name = model
    if Path(model).is_dir():
        # two local models may have one name, so the hash of the path is added
        path = Path(model).resolve()
        name = f"{path.name}-{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    return cache_folder() / "vectors" / re.sub(r"[^A-Za-z0-9_.-]+", "--", name)


class VectorFolder:
    """Folder with one file per vector."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read_all(self) -> Iterator[tuple[str, SteeringVector]]:
        """Read every vector, with its name. What cannot be read is reported and stays."""
        for path in sorted(self.path.glob(f"*{SUFFIX}")):
            name = path.name.removesuffix(SUFFIX)
            try:
                check_name(name)
                yield name, _read(path)
            except (OSError, RequestError) as exc:
                logger.warning(f"vector {name} is left out, {path} cannot be used: {exc}")

    def put_away(self, name: str) -> None:
        """Move a vector's file to those that were taken over. Raises OSError."""
        path = self.path / f"{name}{SUFFIX}"
        (self.path / TAKEN).mkdir(exist_ok=True)
        path.replace(self.path / TAKEN / path.name)


def _read(path: Path) -> SteeringVector:
    if path.exists() and not path.is_file():
        raise InvalidVectorError("it is not a regular file.", None)
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise InvalidVectorError(f"it has more than {MAX_BYTES} bytes.", None)
    return SteeringVector.parse(data)
