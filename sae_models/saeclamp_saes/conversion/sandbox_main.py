"""
The process in which an untrusted checkpoint is read and rewritten: it limits itself, works, and prints a line if it fails.

`conversion.convert` starts it, believes nothing it says, and checks what it wrote.
"""

from __future__ import annotations

import errno
import json
import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saeclamp_saes.conversion.pickles import unpickle
from saeclamp_saes.errors import SAEError
from saeclamp_saes.io.checkpoint import CheckpointSource
from saeclamp_saes.loaders import read_source
from saeclamp_saes.loaders.native import write
from saeclamp_saes.options import Options

REFUSED = 3
"""Exit code when the last line of stderr is a sentence for the user."""
OUT_OF_MEMORY = ("can't allocate memory", "cannot allocate memory", "not enough memory", "std::bad_alloc")
"""Parts of torch's messages when an allocation fails; it has no exception of its own for that."""


@dataclass(frozen=True)
class Limits:
    """Limits on the memory, files and CPU time of the process."""

    memory_bytes: int
    """Address space beyond that of its imports."""
    file_bytes: int
    """Size of the largest file it may write."""
    cpu_seconds: int


@dataclass(frozen=True)
class ConversionRequest:
    """A checkpoint to convert, and where to write the result."""

    source: str
    pickle: str | None
    """The one file to unpickle, if the checkpoint is a pickle."""
    options: str
    folder: str
    """Folder to write, whose parent exists."""
    limits: Limits

    def to_json(self) -> str:
        """Return the text that `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ConversionRequest:
        """Read the text of `to_json`."""
        values = json.loads(text)
        return cls(**{**values, "limits": Limits(**values["limits"])})


def main(text: str) -> int:
    """Convert as a request says. Returns the exit code."""
    request = ConversionRequest.from_json(text)
    try:
        _confine(request.limits)
        _convert(request)
    except SAEError as exc:
        sentence = str(exc)
    except Exception as exc:  # noqa: BLE001 (a process's boundary: a hostile file may raise anything)
        sentence = f"{request.pickle or request.source} {_reason(exc, request.limits)}."
    else:
        return 0
    # on a line of its own, whatever a library printed before it without an end of line
    print(f"\n{' '.join(sentence.split())}", file=sys.stderr, flush=True)
    return REFUSED


def _confine(limits: Limits) -> None:
    """
    Lower the process's limits, the hard ones too.

    Only our own code and torch's has run until here. Earlier the limit on memory could not be known: torch's libraries take
    half a gigabyte of address space, with CUDA ten.
    """
    for kind, limit, grace in (
        (resource.RLIMIT_AS, _address_space() + limits.memory_bytes, 0),
        (resource.RLIMIT_FSIZE, limits.file_bytes, 0),
        (resource.RLIMIT_CPU, limits.cpu_seconds, 5),  # so that it dies of SIGXCPU, which says why, and not of SIGKILL
        (resource.RLIMIT_CORE, 0, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        hard = limit + grace if hard == resource.RLIM_INFINITY else min(limit + grace, hard)
        resource.setrlimit(kind, (min(limit, hard), hard))
    torch.set_num_threads(1)


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _convert(request: ConversionRequest) -> None:
    source, options = Path(request.source), Options.parse(request.options)
    unpickled: Mapping[Path, Mapping[str, Tensor]] = {}
    extras: Mapping[Path, Mapping[str, Any]] = {}
    if request.pickle:
        content = unpickle(Path(request.pickle))
        unpickled, extras = {Path(request.pickle): content.tensors}, {Path(request.pickle): content.extras}
    opened = CheckpointSource(source, options, unpickled=unpickled, extras=extras)
    layout, sae = read_source(opened)
    provenance = {"read_as": layout.name, "approximation": opened.approximation, "unit_note": opened.unit_note}
    write(sae, Path(request.folder), provenance)


def _reason(exc: Exception, limits: Limits) -> str:
    text = " ".join(str(exc).split())
    lowered = text.lower()
    if (
        isinstance(exc, MemoryError)
        or (isinstance(exc, OSError) and exc.errno == errno.ENOMEM)
        or any(part in lowered for part in OUT_OF_MEMORY)
    ):
        return f"needs more memory than a file of its size may take ({limits.memory_bytes >> 20} MiB)"
    if isinstance(exc, OSError) and exc.errno == errno.EFBIG:
        return f"would become larger than a file of its size may ({limits.file_bytes >> 20} MiB)"
    return f"cannot be read ({type(exc).__name__}: {text[:200].rstrip('.')})"
