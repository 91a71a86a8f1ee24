"""Files of vectors: one that was acknowledged is there after any end of the server."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path

from saeclamp.types.interventions import is_vector_name
from saeclamp_saes.io.atomic import fsync, replacing
from saeclamp_saes.io.paths import cache_folder
from saeclamp_server.errors import InvalidVectorError, RequestError, VectorExistsError
from saeclamp_server.vectors.vector_file import MAX_BYTES, SteeringVector

logger = logging.getLogger("saeclamp.server")

SUFFIX = ".safetensors"


def default_folder(model: str) -> Path:
    """Return the default folder of a model's vectors: one per model, whoever serves it."""
    name = model
    if Path(model).is_dir():
        # two local models may have one name, so the hash of the path is added
        path = Path(model).resolve()
        name = f"{path.name}-{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    return cache_folder() / "vectors" / re.sub(r"[^A-Za-z0-9_.-]+", "--", name)


def check_name(name: str) -> None:
    """Raise InvalidVectorError unless it is a name that requests and paths of URLs can have."""
    if not is_vector_name(name):
        raise InvalidVectorError(
            f"{name[:80]!r} is no name for a vector: 1 to 64 letters, digits, '_', '.' and '-', and not dots alone.",
            "name",
        )


class VectorStorage:
    """Folder with one file per vector. It is made with the first."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read_all(self) -> Iterator[tuple[str, SteeringVector]]:
        """Read every vector, with its name. What cannot be read is reported and left out."""
        for path in sorted(self.path.glob(f"*{SUFFIX}")):
            name = path.name.removesuffix(SUFFIX)
            try:
                check_name(name)
                yield name, _read(path)
            except (OSError, RequestError) as exc:
                logger.warning(f"vector {name} is left out, {path} cannot be used: {exc}")

    def keep(self, name: str, direction: SteeringVector) -> None:
        """
        Write a vector. When this returns, it is on the disk, whole.

        Raises VectorExistsError where the folder has another of that name, and OSError.
        """
        path = self._path(name)
        if (kept := self._kept(name)) is not None:
            if kept.sha256 != direction.sha256:
                raise VectorExistsError(name, f"kept in {path}")
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with replacing(path) as unfinished:
            unfinished.write_bytes(direction.to_bytes())
        fsync(self.path.parent)  # in which the folder may be new

    def remove(self, name: str) -> None:
        """Delete a vector's file, if there is one. Raises OSError."""
        self._path(name).unlink(missing_ok=True)
        if self.path.is_dir():
            fsync(self.path)

    def _path(self, name: str) -> Path:
        return self.path / f"{name}{SUFFIX}"

    def _kept(self, name: str) -> SteeringVector | None:
        """Read the vector of that name; None where there is none, or a damaged one, which may be written again."""
        try:
            return _read(self._path(name))
        except (FileNotFoundError, InvalidVectorError):
            return None


def _read(path: Path) -> SteeringVector:
    if path.exists() and not path.is_file():
        raise InvalidVectorError("it is not a regular file.", None)
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise InvalidVectorError(f"it has more than {MAX_BYTES} bytes.", None)
    return SteeringVector.parse(data)
