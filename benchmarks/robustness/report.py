"""The file that a run leaves, with the machine and the versions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from benchmarks.machine import RESULTS, machine


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
