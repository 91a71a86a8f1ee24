"""The parts, in their order, and the one that this process runs."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import NamedTuple


class Part(NamedTuple):
    """A part of the run."""

    seconds: int
    """Its share of the lease; what is left undone by then is left out."""
    title: str


PARTS = {
    "rates": Part(15, "The machine"),
    "parity": Part(80, "Kernels against the slow twin"),
    "capture": Part(50, "Graphs, and where the host waits"),
    "decode": Part(100, "Decoding"),
    "prefill": Part(35, "Prefill"),
    "queue_loop": Part(50, "Two steps deep"),
    "compiled": Part(50, "torch.compile"),
    "tools": Part(60, "compute-sanitizer and ncu"),
}
"""By the name of the module."""


def run_part(name: str, out: Path, is_dry: bool) -> None:
    """Run a part in this process, which has imported neither torch nor Triton yet."""
    os.environ["TRITON_INTERPRET"] = "1" if is_dry else "0"
    from benchmarks.h200 import bare_imports

    bare_imports.install()
    from benchmarks.h200.device import Card, StandIn
    from benchmarks.h200.record import Record

    module = importlib.import_module(f"benchmarks.h200.{name}")
    module.run(StandIn() if is_dry else Card(), Record(out, PARTS[name].seconds))
    print(f"  {name} is through", file=sys.stderr)
