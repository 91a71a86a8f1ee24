"""Vectors on disk, memory-mapped, in half precision."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from saeclamp_saes.errors import TrainingError
from saeclamp_saes.io.work_folder import DamagedFolderError

StoreDtype = Literal["bfloat16", "float16"]
STORE_DTYPES: tuple[StoreDtype, ...] = get_args(StoreDtype)
ROOM_TO_LEAVE = 1 << 28
"""Bytes of a disk that are left free."""
BYTES = 2
"""Bytes of a number: both types are half precision."""
WRITTEN_AT_ONCE = 1 << 20
"""Bytes of zeros that are written at once, on systems without `posix_fallocate`."""
CHUNK_BYTES = 1 << 26
"""Bytes of vectors, in fp32, that are worked on at once."""


class VectorFile:
    """A memory-mapped file of `num_rows` vectors or more; rows that were never written are zero."""

    def __init__(self, path: Path, num_rows: int, width: int, dtype: StoreDtype, *, begun: bool) -> None:
        """
        Open the file, or make it.

        begun: vectors were written to it before, so that it must be there, and whole
        Raises TrainingError when the disk has no room for it, DamagedFolderError where vectors are missing.
        """
        size = num_rows * width * BYTES
        if begun:
            _check_size(path, size)
        else:
            path.unlink(missing_ok=True)  # nothing in it counts
            _make(path, num_rows, width)
        # numpy would make a short file longer by zeros
        self._map = np.memmap(path, np.int16, "r+", shape=(num_rows, width))
        self._path = path
        self.tensor: Tensor = torch.from_numpy(self._map).view(getattr(torch, dtype))
        """(num_rows, width), the file itself"""

    def write(self, slots: Tensor, vectors: Tensor) -> None:
        """
        Write vectors to the rows `slots`, and to the disk.

        slots:   (n,) int64
        vectors: (n, width), in the file's dtype
        """
        self.tensor[slots] = vectors
        # at once, because the caller notes next that they are there, and never harvests them again; and not by the map's own
        # flush, which looks at every page of the file
        with self._path.open("rb") as file:
            os.fdatasync(file.fileno())


def _make(path: Path, num_rows: int, width: int) -> None:
    size, free = num_rows * width * BYTES, shutil.disk_usage(path.parent).free
    takes = f"{num_rows} vectors of {width} numbers take {size / 1e9:.1f} GB"
    if size + ROOM_TO_LEAVE > free:
        raise TrainingError(f"{takes}, and {path.parent} has {free / 1e9:.1f} GB free: keep fewer.")
    try:
        allocate(path, size)
    except OSError as exc:  # a quota, or a disk that another process filled meanwhile
        path.unlink(missing_ok=True)
        raise TrainingError(f"{takes}, and {path} cannot be made so large: {exc.strerror or exc}. Keep fewer.") from exc


def allocate(path: Path, size: int) -> None:
    """
    Make a file of zeros that has all its room on the disk: where a mapped file meets a full one, the process is killed.

    size: bytes, 1 or more
    Raises OSError where there is no room; what was made of the file is left.
    """
    with path.open("wb") as file:
        if sys.platform != "darwin":
            os.posix_fallocate(file.fileno(), 0, size)
        else:  # which has no such call
            for first in range(0, size, WRITTEN_AT_ONCE):
                file.write(bytes(min(WRITTEN_AT_ONCE, size - first)))


def truncate(path: Path, num_rows: int, width: int) -> None:
    """Cut a file to its first vectors. It must not be written to any more."""
    os.truncate(path, num_rows * width * BYTES)


def _check_size(path: Path, size: int) -> None:
    if not path.is_file():
        raise DamagedFolderError(
            f"{path} is missing, with vectors that are needed: put it back, or begin anew elsewhere."
        )
    if path.stat().st_size < size:
        raise DamagedFolderError(
            f"{path} was cut short: it has {path.stat().st_size:,} bytes, and {size:,} are needed. Put it back as it was, "
            "or begin anew elsewhere."
        )


class VectorTable:
    """Vectors of several files as if they were one."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """
        Join vectors of one width.

        tensors: (n, width) each
        """
        self._tensors = tuple(tensors)
        self.width = tensors[0].shape[1]

    def __len__(self) -> int:
        return sum(map(len, self._tensors))

    def take(self, index: Tensor) -> Tensor:
        """
        Read some rows.

        index:   (n,) int64
        returns: (n, width) fp32, where the vectors are
        """
        out = torch.empty(len(index), self.width, device=self._tensors[0].device)
        first = 0
        for tensor in self._tensors:
            here = (index >= first) & (index < first + len(tensor))
            out[here.to(out.device)] = tensor[(index[here] - first).to(out.device)].float()
            first += len(tensor)
        return out

    def near(self, device: torch.device) -> VectorTable:
        """Return a copy on a GPU where that takes at most a quarter of its free memory, else the table itself."""
        if device.type != "cuda" or sum(t.nbytes for t in self._tensors) > torch.cuda.mem_get_info(device)[0] // 4:
            return self
        return VectorTable([tensor.to(device) for tensor in self._tensors])

    def chunks(self, num_rows: int | None = None) -> Iterator[Tensor]:
        """Yield the first rows, or all, in runs of (n, width) fp32."""
        step = max(1, CHUNK_BYTES // (4 * self.width))
        left = len(self) if num_rows is None else num_rows
        for tensor in self._tensors:
            num = min(left, len(tensor))
            for first in range(0, num, step):
                yield tensor[first : min(num, first + step)].float()
            left -= num
