"""Npz: a zip of numpy arrays. It is read as a stream, nothing is unpickled or inflated beyond what its header declares."""

from __future__ import annotations

import io
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from numpy.lib import format as npy
from torch import Tensor

from saeclamp_saes.errors import CheckpointError
from saeclamp_saes.io.tensors import (
    MAX_HEADER_BYTES,
    MAX_TENSORS,
    TensorEntry,
    Tensors,
    check_size,
    file_stamp,
    open_regular,
)

MAX_RATIO = 16
"""Bound on declared size over file size; random weights hardly compress, a bomb does by a thousand."""

DTYPES = {name: getattr(torch, name) for name in ("float64", "float32", "float16", "int64", "int32", "bool")}
"""torch dtypes by numpy's names."""

NPZ_ERRORS = (
    zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, KeyError, EOFError, zlib.error, struct.error
)  # fmt: skip
"""Exceptions of zipfile for a damaged, encrypted (RuntimeError) or unsupported archive."""

READ_HEADER: dict[tuple[int, int], Callable[[io.BytesIO], Any]] = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
}
NPY_ERRORS = (ValueError, TypeError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError)
"""Exceptions of numpy for bytes that are no header."""


class NpzFile(Tensors):
    """An npz file, read as a stream: nothing is unpickled, and nothing is inflated beyond what its header declares."""

    def __init__(self, path: Path, shapes_only: bool = False) -> None:
        self._members: dict[str, zipfile.ZipInfo] = {}
        with open_regular(path) as file:
            self._stamp = file_stamp(file)
            try:
                with zipfile.ZipFile(_CheckedReader(file)) as archive:
                    stored = self._read_headers(path, archive)
            except NPZ_ERRORS as exc:
                if isinstance(exc, CheckpointError):
                    raise
                raise CheckpointError(f"{path} is not a readable npz file: {_one_line(exc)}.") from exc
        super().__init__(path, stored, shapes_only)

    def _read_headers(self, path: Path, archive: zipfile.ZipFile) -> dict[str, TensorEntry]:
        members = archive.infolist()
        if len(members) > MAX_TENSORS:
            raise CheckpointError(f"{path} holds {len(members)} tensors; an SAE has a few.")
        if sum(member.file_size for member in members) > MAX_RATIO * self._stamp[0]:
            raise CheckpointError(f"{path} declares far more than it holds; it looks like a zip bomb.")
        self._members = {member.filename.removesuffix(".npy"): member for member in members}
        if len(self._members) != len(members):
            raise CheckpointError(f"{path} names a tensor twice.")
        # the names, before one of them stands in a message
        check_size(path, dict.fromkeys(self._members, ()))
        return {name: _npy_header(path, archive, name, member) for name, member in self._members.items()}

    def _chunks(self, name: str, first: int, count: int, step: int) -> Iterator[Tensor]:
        _, dtype, offset = self._entry(name)
        with open_regular(self.path, self._stamp) as file:
            try:
                with zipfile.ZipFile(file) as archive, archive.open(self._members[name]) as stream:
                    stream.seek(offset + first * dtype.itemsize)
                    for start in range(0, count, step):
                        data = stream.read(min(step, count - start) * dtype.itemsize)
                        yield torch.frombuffer(bytearray(data), dtype=dtype)
            except NPZ_ERRORS as exc:
                if isinstance(exc, CheckpointError):
                    raise
                raise CheckpointError(f"{self.path}: {name} cannot be read: {_one_line(exc)}.") from exc


class _CheckedReader(io.FileIO):
    """A file whose zip directory, which zipfile reads in one go whatever its size, must be a small one."""

    def __init__(self, file: io.FileIO) -> None:
        # `open_regular` still needs the file, to see whether it was changed, and closes it
        super().__init__(file.fileno(), closefd=False)

    def read(self, size: int | None = -1, /) -> bytes:
        limit = MAX_HEADER_BYTES + 1
        data = super().read(limit if size is None or size < 0 else min(size, limit))
        if len(data) == limit:
            raise zipfile.BadZipFile("its directory is too large")
        return data


def _npy_header(path: Path, archive: zipfile.ZipFile, name: str, member: zipfile.ZipInfo) -> TensorEntry:
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise CheckpointError(f"{path}: {name} is compressed in a way that numpy never writes.")
    with archive.open(member) as stream:
        head = io.BytesIO(stream.read(1 << 14))  # a header's own length may be a lie
    try:
        version = npy.read_magic(head)  # type: ignore[no-untyped-call]
        if version not in READ_HEADER:
            raise ValueError(f"npy version {version} is not supported")
        shape, fortran_order, dtype = READ_HEADER[version](head)
    except NPY_ERRORS as exc:
        raise CheckpointError(f"{path}: {name} is not a readable array: {_one_line(exc)}.") from exc
    if dtype.hasobject:
        raise CheckpointError(f"{path}: {name} holds Python objects, which are a pickle.")
    if dtype.name not in DTYPES or not dtype.isnative:
        raise CheckpointError(f"{path}: {name} holds {dtype}, not numbers that can be read.")
    if fortran_order and len(shape) > 1:
        raise CheckpointError(f"{path}: {name} is stored in Fortran order, which is not read; save it in C order.")
    entry = TensorEntry(tuple(shape), DTYPES[dtype.name], head.tell())
    check_size(path, {name: entry.shape})
    if entry.offset + entry.nbytes != member.file_size:
        raise CheckpointError(f"{path}: {name} declares shape {entry.shape}, which does not fit its size.")
    return entry


def _one_line(exc: Exception) -> str:
    return " ".join(str(exc).split())[:300].rstrip(".")
