"""
Named tensors of a checkpoint, shapes first and numbers later, whatever contains them.

Everything a file says is checked before anything is allocated for it, and files are read, not mapped: one that is cut
meanwhile is an error and no crash (a mapping dies of SIGBUS), and none of its pages count as memory of ours.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from saeclamp_saes.errors import CheckpointError

MAX_TENSORS = 1024
MAX_DIMENSION = 1 << 22
"""Bound on a tensor's sizes; the widest published SAEs have a quarter of this many features."""
MAX_HEADER_BYTES = 1 << 20
"""Bound on a safetensors header or a zip's directory; a thousand tensors take a tenth of it."""
CHUNK_BYTES = 16 << 20
"""Bytes of a tensor that are read at once, so that a matrix is never in memory twice."""

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

MAY_BE_NAN = {"activation_mean", "activation_std", "activation_global_scale"}
"""Tensors in which a family writes NaN for "not set"."""

Shape = tuple[int, ...]
Stamp = tuple[int, int]
"""A file's size and time of change."""


class TensorEntry(NamedTuple):
    """A tensor as its container describes it."""

    shape: Shape
    dtype: torch.dtype
    offset: int = 0
    """Byte at which its numbers begin, in the file or in the archive's member."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Tensors(ABC):
    """
    The tensors of a file. Reading gives finite fp32; with `shapes_only`, tensors without numbers on the meta device.

    Shapes are (leading, ...) as stored. Every method that takes a name raises CheckpointError when the file lacks it.
    """

    def __init__(self, path: Path, stored: Mapping[str, TensorEntry], shapes_only: bool) -> None:
        self.path = path
        self.stored = stored
        self.shapes = {name: entry.shape for name, entry in stored.items()}
        self.shapes_only = shapes_only
        self.chunk_bytes = CHUNK_BYTES
        check_size(path, self.shapes)

    @abstractmethod
    def _chunks(self, name: str, first: int, count: int, step: int) -> Iterator[Tensor]:
        """Yield elements first .. first + count of the flattened tensor, as stored, `step` at a time: (at most step,)."""

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def expect(self, required: Mapping[str, Shape], optional: Mapping[str, Shape] | None = None) -> None:
        """Raise CheckpointError unless the file holds the required tensors and, but for optional ones, no other."""
        known = {**required, **(optional or {})}
        missing, unknown = sorted(required.keys() - self.shapes), sorted(self.shapes.keys() - known)
        if missing or unknown:
            problem = (
                f"lacks {', '.join(missing)}" if missing else f"has {', '.join(unknown)}, whose meaning is not known"
            )
            raise CheckpointError(f"{self.path} {problem}.")
        for name in self.shapes:
            self._check_shape(name, known[name])

    def transposed(self, name: str, shape: Shape) -> Tensor:
        """
        Read the transpose of a stored matrix into contiguous memory, without ever holding both.

        shape: (rows, columns) as stored;  returns: (columns, rows)
        """
        self._check_shape(name, shape)
        out = self._empty(name, shape[::-1])
        first = 0
        for chunk in self._floats(name, 0, out.numel(), multiple=shape[1]):
            rows = chunk.view(-1, shape[1])
            out[:, first : first + len(rows)] = rows.T
            first += len(rows)
        return out

    def tensor(self, name: str, shape: Shape) -> Tensor:
        """Read a tensor of the given shape, which the file must have."""
        self._check_shape(name, shape)
        return self._fill(name, self._empty(name, shape), 0)

    def part(self, name: str, index: int) -> Tensor:
        """Read `tensor[index]` of a stored tensor, and no more of it."""
        shape = self._entry(name).shape
        if not shape or not 0 <= index < shape[0]:
            raise CheckpointError(f"{self.path}: {name} has shape {shape}, so no part {index}.")
        out = self._empty(name, shape[1:])
        return self._fill(name, out, index * out.numel())

    def tail(self, name: str, start: int) -> Tensor:
        """Read `tensor[:, start:]` of a stored (rows, parts, width) tensor, and never hold the rest: (rows, all widths)."""
        rows, parts, width = self._entry(name).shape
        out = self._empty(name, (rows, (parts - start) * width))
        first = 0
        for chunk in self._floats(name, 0, rows * parts * width, multiple=parts * width):
            kept = chunk.view(-1, parts * width)[:, start * width :]
            out[first : first + len(kept)] = kept
            first += len(kept)
        return out

    def scalar(self, name: str) -> float:
        """Read a tensor of one number, also with `shapes_only`."""
        if math.prod(self._entry(name).shape) != 1:
            raise CheckpointError(f"{self.path}: {name} has shape {self.shapes[name]}, expected one number.")
        value = float(next(self._chunks(name, 0, 1, 1)))
        if not math.isfinite(value):
            raise CheckpointError(f"{self.path}: {name} holds NaN or infinity.")
        return value

    def is_nan(self, name: str) -> bool:
        """Tell whether a short tensor has a NaN, which some families write for "not set"; also with `shapes_only`."""
        count = math.prod(self._entry(name).shape)
        return any(bool(chunk.isnan().any()) for chunk in self._chunks(name, 0, count, self.chunk_bytes // 4))

    def _empty(self, name: str, shape: Shape) -> Tensor:
        dtype = self.stored[name].dtype
        if dtype not in FLOATS:
            raise CheckpointError(f"{self.path}: {name} holds {dtype}, not floating-point numbers.")
        return torch.empty(shape, dtype=torch.float32, device="meta" if self.shapes_only else "cpu")

    def _fill(self, name: str, out: Tensor, first: int) -> Tensor:
        flat, done = out.view(-1), 0
        for chunk in self._floats(name, first, out.numel()):
            flat[done : done + len(chunk)] = chunk
            done += len(chunk)
        return out

    def check_numbers(self) -> None:
        """Read every tensor, keeping none. Raises CheckpointError for NaN or infinity."""
        for name, stored in self.stored.items():
            for _ in self._floats(name, 0, math.prod(stored.shape)):
                pass

    def _floats(self, name: str, first: int, count: int, multiple: int = 1) -> Iterator[Tensor]:
        """Yield finite fp32 elements first .. first + count, a multiple of `multiple` at a time; none with `shapes_only`."""
        if self.shapes_only:
            return
        step = max(1, self.chunk_bytes // 4 // multiple) * multiple
        for chunk in self._chunks(name, first, count, step):
            single = chunk.float()  # first, because fp64 may hold what fp32 cannot
            if not is_finite(single):
                raise CheckpointError(f"{self.path}: {name} holds NaN or infinity.")
            yield single

    def _entry(self, name: str) -> TensorEntry:
        if name not in self.stored:
            raise CheckpointError(f"{self.path} lacks {name}.")
        return self.stored[name]

    def _check_shape(self, name: str, expected: Shape) -> None:
        shape = self._entry(name).shape
        if shape != expected:
            turned = " (stored the other way round)" if len(shape) == 2 and shape == expected[::-1] else ""
            raise CheckpointError(f"{self.path}: {name} has shape {shape}, expected {expected}{turned}.")


def is_finite(tensor: Tensor) -> bool:
    """
    Tell whether a tensor is free of NaN and infinity; a tensor on the meta device is.

    It looks at the extremes, which NaN spreads to: ten times as fast as `isfinite`, and without a tensor of its answers.
    """
    rows = tensor.T if tensor.dim() == 2 and tensor.stride(0) == 1 else tensor  # aminmax would copy a transposed matrix
    return tensor.is_meta or all(math.isfinite(extreme) for extreme in torch.aminmax(rows))


def check_size(path: Path, shapes: Mapping[str, Sequence[int]]) -> None:
    """Raise CheckpointError for more tensors, stranger names or larger shapes than an SAE's."""
    if len(shapes) > MAX_TENSORS:
        raise CheckpointError(f"{path} holds {len(shapes)} tensors; an SAE has a few.")
    for name, shape in shapes.items():
        if not name.isprintable() or len(name) > 256:
            raise CheckpointError(f"{path} holds a tensor whose name cannot be printed: {name[:256]!r}.")
        if len(shape) > 3 or not all(0 < size <= MAX_DIMENSION for size in shape):
            raise CheckpointError(f"{path}: {name} has shape {tuple(shape[:4])}, which no SAE has.")


@contextmanager
def open_regular(path: Path, expected: Stamp | None = None) -> Iterator[FileIO]:
    """
    Open a file that must not change until it is closed, nor since it had the stamp `expected`.

    Raises CheckpointError. A pipe or device is never opened, because reading it may never end.
    """
    if not path.exists():
        raise CheckpointError(f"{path.parent} has no {path.name}.")
    if not path.is_file():
        raise CheckpointError(f"{path} is not a regular file.")
    try:
        with path.open("rb", buffering=0) as file:
            stamp = file_stamp(file)
            if expected in (None, stamp):
                yield file
            if (expected or stamp) != file_stamp(file):
                raise CheckpointError(f"{path} was changed while it was read.")
    except OSError as exc:
        raise CheckpointError(f"{path} cannot be read: {exc.strerror or exc}.") from exc


def file_stamp(file: FileIO) -> Stamp:
    """Return a file's size and time of change, one of which differs when it was changed."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


class LoadedTensors(Tensors):
    """Tensors in memory, which the converter has unpickled and checked."""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor], shapes_only: bool = False) -> None:
        super().__init__(path, {name: TensorEntry(tuple(t.shape), t.dtype) for name, t in tensors.items()}, shapes_only)
        self._tensors = tensors

    def _chunks(self, name: str, first: int, count: int, step: int) -> Iterator[Tensor]:
        flat = self._tensors[name].detach().reshape(-1)
        for start in range(first, first + count, step):
            yield flat[start : min(start + step, first + count)]


class PrefixedTensors(Tensors):
    """The tensors of a file whose names begin with a prefix, named without it."""

    def __init__(self, whole: Tensors, prefix: str) -> None:
        inside = {name.removeprefix(prefix): entry for name, entry in whole.stored.items() if name.startswith(prefix)}
        super().__init__(whole.path, inside, whole.shapes_only)
        self._whole, self._prefix = whole, prefix

    def _chunks(self, name: str, first: int, count: int, step: int) -> Iterator[Tensor]:
        yield from self._whole._chunks(self._prefix + name, first, count, step)
