"""
Loading a pickled checkpoint: tensors by name, and plain values. Only the sandbox's process calls this.

`torch.load(weights_only=True)` refuses code, but passes on whatever shape a file declares: 1.6 KB can stand for a tensor of
4 TiB, a view of one number or a sparse one. So every tensor is looked at before anything is computed with it.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saeclamp_saes.errors import CheckpointError
from saeclamp_saes.io.checkpoint import BACKUP, TRAINER_STATE
from saeclamp_saes.io.config import is_unrepresentable
from saeclamp_saes.io.tensors import FLOATS, MAY_BE_NAN, check_size, is_finite, open_regular

OLDEST_TORCH = (2, 10)
MAX_DEPTH = 8
MAX_VALUES = 1 << 20
"""Bound on values, with every reference followed: a kilobyte of pickle can stand for a billion."""
INTEGERS = (torch.int64, torch.int32, torch.bool)
"""Types of counters beside the weights: k, the sizes of Matryoshka groups, steps since a feature was active."""


class Unpickled(NamedTuple):
    """A pickle's content."""

    tensors: dict[str, Tensor]
    """Names of nested mappings are joined by dots. Dense, finite, on the CPU, no larger than the file."""
    extras: dict[str, Any]
    """Numbers, texts, lists and nested mappings of them."""


def unpickle(path: Path) -> Unpickled:
    """Load a pickle that holds tensors and plain values only. Raises CheckpointError with one sentence."""
    check_torch(torch.__version__)
    with open_regular(path) as file:
        is_zip = file.read(4) == b"PK\x03\x04"  # as torch.save has written since 1.6
        size = file.seek(0, 2)
    if is_zip:
        _check_archive(path)
    content = _load(path, mmap=is_zip)  # a mapped file is in memory once, and an unmapped one only if it is an old one
    walk = _Unpickler(path)
    extras = walk.mapping("", _without_trainer_state(content))
    _check(path, walk.tensors, size)
    return Unpickled({name: tensor.detach() for name, tensor in walk.tensors.items()}, extras)


def _without_trainer_state(content: Any) -> Any:
    """Drop the trainer's state from a run to resume, which has the SAE in "ae" and an optimiser as large beside it."""
    inside = content.get(BACKUP) if isinstance(content, Mapping) else None
    if not isinstance(inside, Mapping):
        return content
    return {name: value for name, value in content.items() if name not in TRAINER_STATE}


def check_torch(version: str) -> None:
    """Raise CheckpointError for a torch whose loading of pickles is known to be unsafe."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise CheckpointError(
            f"Converting a pickle needs torch {oldest} or later, because loading one with {version} can corrupt memory "
            "(CVE-2026-24747) or, before 2.6, run code (CVE-2025-32434)."
        )


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [member.filename for member in archive.infolist() if member.compress_type != zipfile.ZIP_STORED]
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as exc:
        raise CheckpointError(f"{path} is damaged or cut off: {exc}.") from exc
    if packed:
        # a mapping would take the compressed bytes for numbers
        raise CheckpointError(f"{path} was compressed after it was saved ({packed[0]!r}), which torch.save never does.")


def _load(path: Path, mmap: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as exc:
        code = re.search(r"GLOBAL ([\w.]+)", str(exc))
        if code:
            raise CheckpointError(
                f"{path} asks for {code[1]}, which is code and not numbers; nothing of it was run, and it is not converted."
            ) from exc
        reason = re.search(r"WeightsUnpickler error:\s*([^\n]{1,120})", str(exc))
        raise CheckpointError(
            f"{path} is not a pickle of tensors and plain values{f': {reason[1].strip()}' if reason else ''}."
        ) from exc


class _Unpickler:
    """A pass over nested mappings: sets tensors apart, and copies plain values."""

    def __init__(self, path: Path) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._path = path
        self._num_values = 0

    def mapping(self, prefix: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise CheckpointError(f"{self._path} holds a {type(value).__name__} where names with tensors are expected.")
        plain = {}
        for key, item in value.items():
            if not isinstance(key, str | int):
                raise CheckpointError(f"{self._path} names something by a {type(key).__name__}, not by a text.")
            name = f"{prefix}{key}"
            if isinstance(item, Tensor):
                if name in self.tensors:
                    raise CheckpointError(f"{self._path} names the tensor {name} twice.")
                self.tensors[name] = item
            else:
                plain[str(key)] = self._plain(name, item)
        return plain

    def _plain(self, name: str, value: Any) -> Any:
        self._num_values += 1
        if self._num_values > MAX_VALUES or name.count(".") > MAX_DEPTH:
            raise CheckpointError(f"{self._path} holds more values beside its tensors than an SAE has.")
        if isinstance(value, Mapping):
            return self.mapping(f"{name}.", value)
        if isinstance(value, list | tuple):  # also torch.Size
            return [self._plain(f"{name}.", item) for item in value]
        if isinstance(value, torch.dtype | torch.device):
            return str(value)
        if value is None or isinstance(value, str | bool | int | float):
            return None if is_unrepresentable(value) else value
        raise CheckpointError(f"{self._path}: {name} is a {type(value).__name__}, neither a tensor nor a plain value.")


def _check(path: Path, tensors: Mapping[str, Tensor], file_size: int) -> None:
    """Raise CheckpointError unless a file of this size can hold these tensors. No number is read before that is known."""
    for name, tensor in tensors.items():
        if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.layout is not torch.strided or tensor.is_nested:
            raise CheckpointError(f"{path}: {name} is not a dense tensor ({type(tensor).__name__}, {tensor.layout}).")
    check_size(path, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    for name, tensor in tensors.items():
        _check_memory(path, name, tensor)
    total = sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())
    if total > 1.01 * file_size:
        raise CheckpointError(f"{path} has {file_size} bytes and declares tensors of {total}.")
    for name, tensor in tensors.items():
        if tensor.dtype in FLOATS and not is_finite(tensor) and name.removeprefix(f"{BACKUP}.") not in MAY_BE_NAN:
            raise CheckpointError(f"{path}: {name} holds NaN or infinity.")


def _check_memory(path: Path, name: str, tensor: Tensor) -> None:
    if tensor.device.type != "cpu":
        raise CheckpointError(f"{path}: {name} is on the {tensor.device.type} device and holds no numbers.")
    if tensor.dtype not in FLOATS and not (tensor.dtype in INTEGERS and tensor.dim() < 2):
        raise CheckpointError(f"{path}: {name} holds {tensor.dtype}, not numbers that can be read.")
    declared, held = tensor.numel() * tensor.itemsize, tensor.untyped_storage().nbytes()
    if declared > held:
        raise CheckpointError(f"{path}: {name} declares {declared} bytes and holds {held}.")
