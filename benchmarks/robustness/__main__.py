"""
Abuse a server of a tiny model, and say what came of it.

    python -m benchmarks.robustness fuzz|kills|disconnects|soak [--num N] [--seconds S] [--seed N] [--write]

Each takes between ten minutes and an hour at its full size on two cores.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.robustness.disconnects import disconnects
from benchmarks.robustness.fuzz import Findings, fuzz
from benchmarks.robustness.kills import kills
from benchmarks.robustness.report import write
from benchmarks.robustness.server import SMALL_CACHE, tiny_server
from benchmarks.robustness.soak import soak

from saeclamp_saes.cli.log_handler import set_up_log

NUM = {"fuzz": 20_000, "kills": 200, "disconnects": 5_000, "soak": 0}
SOAK_S = 20 * 60


def main() -> int:
    """Run one of them; the exit status says whether anything was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*NUM])
    parser.add_argument("--num", type=int)
    parser.add_argument("--seconds", type=float, default=SOAK_S)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="keep the result below benchmarks/results")
    options = parser.parse_args()
    set_up_log()
    num = options.num or NUM[options.what]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.what == "kills":
            record = kills(folder, num, options.seed)
            counts = [f"{len(record.variants)} variants and {len(record.vectors)} vectors were acknowledged."]
            title, lines, bad = f"{num} kills with -9 during writes", [*_counts(record.killed), *counts], record.bad
        else:
            title, lines, bad = _against_one(options.what, folder, num, options.seconds, options.seed)
    lines = [*lines, "", f"Findings: {len(bad)}.", *(f"* {one}" for one in bad[:20])]
    write(options.what, title, lines, options.write)
    return bool(bad)


def _against_one(what: str, folder: Path, num: int, seconds: float, seed: int) -> tuple[str, list[str], Sequence[str]]:
    with tiny_server(folder, *(SMALL_CACHE if what == "disconnects" else ())) as server:
        if what == "fuzz":
            findings, watch = asyncio.run(fuzz(server, num, seed))
            return f"{num} structured and mutated requests", [*_answers(findings), *watch.report()], findings.bad
        if what == "disconnects":
            watch, num_begun = asyncio.run(disconnects(server, num, seed))
            watch.rest()
            begun = f"{num_begun} of them left what the engine had begun to answer, the others while it was being read."
            return f"{num} clients that leave", [begun, "", *watch.report()], []
        findings, watch, errors = asyncio.run(soak(server, seconds, seed))
        lines = [*_answers(findings), *_counts(errors), *watch.report()]
        return f"{seconds / 60:.0f} minutes at saturation", lines, findings.bad


def _answers(findings: Findings) -> list[str]:
    return [
        "| endpoint and status | answers |",
        "|---|--:|",
        *(f"| {of} | {n} |" for of, n in sorted(findings.answers.items())),
        "",
    ]


def _counts(counts: Mapping[str, int]) -> list[str]:
    return [", ".join(f"{of}: {n}" for of, n in sorted(counts.items())) + ".", ""] if counts else []


if __name__ == "__main__":
    sys.exit(main())
