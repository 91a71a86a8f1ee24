"""Safetensors: eight bytes with the header's length, the header in JSON, then the numbers back to back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BytesIO, FileIO
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from saeclamp_saes.errors import CheckpointError
from saeclamp_saes.io.tensors import MAX_HEADER_BYTES, TensorEntry, Tensors, file_stamp, open_regular

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "BOOL": torch.bool,
}
"""torch dtypes by safetensors' names. Others are refused: an 8-bit float, say, is a quantised matrix without its scales."""


def write_safetensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write contiguous tensors, with the folder's permissions: safetensors makes a file that its owner alone can read."""
    save_file(tensors, path)
    path.chmod(path.parent.stat().st_mode & 0o666)


class SafetensorsFile(Tensors):
    """A safetensors file: eight bytes with the header's length, the header in JSON, the numbers back to back."""

    def __init__(self, path: Path, shapes_only: bool = False) -> None:
        with open_regular(path) as file:
            self._stamp = file_stamp(file)
            try:
                stored, _ = read_header(file, self._stamp[0])
            except (ValueError, RecursionError) as exc:
                raise CheckpointError(f"{path} is not a readable safetensors file: {exc}.") from exc
        super().__init__(path, stored, shapes_only)

    def _chunks(self, name: str, first: int, count: int, step: int) -> Iterator[Tensor]:
        _, dtype, offset = self._entry(name)
        with open_regular(self.path, self._stamp) as file:
            file.seek(offset + first * dtype.itemsize)
            for start in range(0, count, step):
                yield _read_exactly(self.path, file, min(step, count - start), dtype)


def read_header(file: FileIO | BytesIO, size: int) -> tuple[dict[str, TensorEntry], dict[str, Any]]:
    """
    Read the header of a file of `size` bytes: its tensors' entries, and its metadata.

    Raises ValueError unless the tensors fill it exactly, without gaps or overlaps.

    `safetensors.safe_open` would not save this: it opens paths alone, not an upload's bytes, and maps them; it says neither
    where a tensor's numbers begin nor that a name stands twice, takes headers of 100 MB, and gives no metadata at all where
    one value is no text. So the JSON would be read here too, and only the sums below would be its work.
    """
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
        raise ValueError(f"its header would have {length} bytes")
    header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_without_repetition)
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise ValueError("its metadata is no JSON object")
    stored = {name: _safetensors_entry(name, value, 8 + length) for name, value in header.items()}
    end = 8 + length
    for name, entry in sorted(stored.items(), key=lambda item: item[1].offset):
        if entry.offset != end:
            raise ValueError(f"the numbers of {name!r} overlap others, or leave a gap")
        end += entry.nbytes
    if end != size:
        raise ValueError(f"it has {size} bytes where its header describes {end}")
    return stored, metadata


def _safetensors_entry(name: str, value: Any, start: int) -> TensorEntry:
    match value:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]}:
            if dtype not in DTYPES:
                raise ValueError(f"{name!r} holds {dtype[:16]}, which is none of {', '.join(DTYPES)}")
            # JSON's integers have no bound, and the sizes are multiplied before they can be compared with the file's
            if len(shape) <= 8 and all(type(size) is int and 0 <= size < 1 << 48 for size in shape):
                entry = TensorEntry(tuple(shape), DTYPES[dtype], start + begin)
                if begin >= 0 and end - begin == entry.nbytes:
                    return entry
    raise ValueError(f"its header describes {name!r} in a way that does not add up")


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # of two entries of one name json keeps the last, and another reader perhaps the first
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("its header says something twice")
    return value


def _read_exactly(path: Path, file: FileIO, count: int, dtype: torch.dtype) -> Tensor:
    data = torch.empty(count * dtype.itemsize, dtype=torch.uint8)
    left = memoryview(data.numpy().data)
    # an unbuffered file may give less than it is asked for
    while left:
        num_bytes = file.readinto(left)
        if not num_bytes:
            raise CheckpointError(f"{path} ends before its last number: it was cut off.")
        left = left[num_bytes:]
    return data.view(dtype)
