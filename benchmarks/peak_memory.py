"""
The memory that one step of an engine takes at most, above what it has when it is idle.

    python -m benchmarks.peak_memory [--case NAME] [--write]

Each case runs one forward's op in a fresh process, by the torch executor on this CPU, at a site of width 4,096 in bf16. It
is the process's high-water mark (VmHWM) less what it holds (VmRSS) after a first step of one token, with the tables, the SAE
and the step's own vectors. Whatever a library keeps for itself counts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import NamedTuple

import torch
from benchmarks.h200.device import StandIn
from benchmarks.h200.tables import SAE_NAME, Shape, Tables, clamps, kinds, program_of, steer
from benchmarks.loading import memory
from benchmarks.machine import RESULTS, machine

from saeclamp_saes.sae import TopK
from saeclamp_server.engine.worker.prompt_means import RecordedRows
from saeclamp_server.engine.worker.top_features import TopFeaturesInputs
from saeclamp_server.engine.worker.torch_executor import TorchExecutor
from saeclamp_server.steering.program import ComparisonSpec, RuleSpec, SteeringProgram
from saeclamp_server.steering.token_ranges import ALL

WIDTH = 4096
NUM_REQUESTS, NUM_EACH = 64, 128
NUM_TOKENS = NUM_REQUESTS * NUM_EACH
TARGET_MB = 256
SITE = 0


class Case(NamedTuple):
    """A step that takes much memory."""

    title: str
    shape: Shape
    prepare: Callable[[Tables], None]
    """Begins the step."""


def of_programs(program: Callable[[int], SteeringProgram]) -> Callable[[Tables], None]:
    """Steer the tokens of each request, by the number of the request."""

    def prepare(tables: Tables) -> None:
        numbers = [tables.add(program(nth)) for nth in range(NUM_REQUESTS)]
        tables.steering.executor.map_tokens(tables.batch(numbers, NUM_EACH, first_position=1))

    return prepare


def compare_256(nth: int) -> SteeringProgram:
    """Make as many rules with as many comparisons as a request can have."""

    def rule(number: int) -> RuleSpec:
        tests = tuple(ComparisonSpec(SAE_NAME, 16 * number + test, 0.0, above=True) for test in range(16))
        return RuleSpec(tests, ("any", tuple(range(16))), ALL, special=True)

    rules = tuple(rule(number) for number in range(16))
    return program_of(clamps([nth], rule=0), rules=rules)


def find_strongest(tables: Tables) -> None:
    """Ask for the strongest features of all tokens."""
    rows = torch.arange(NUM_TOKENS)
    everyone = torch.ones_like(rows).bool()
    tables.steering.top_features.wanted = {SAE_NAME: TopFeaturesInputs(rows, everyone, everyone, 8)}


def record_mean(tables: Tables) -> None:
    """Ask for the mean of all tokens' vectors."""
    site = str(tables.states[SITE].site)
    tables.steering.prompt_means.takes = {site: [RecordedRows("key", torch.arange(NUM_TOKENS))]}


OWN = Shape(WIDTH, NUM_REQUESTS * 64, SITE)
CASES = {
    "own": Case(
        "64 requests x 128 tokens, 64 features of its own for each",
        OWN,
        of_programs(lambda nth: kinds(OWN, nth, NUM_REQUESTS)["64 features each"]),
    ),
    "shared": Case(
        "the same, with the same 64 features for all", OWN, of_programs(lambda nth: program_of(clamps(range(64))))
    ),
    "topk": Case(
        "the same, with features of their own of a TopK SAE of 16,384",
        Shape(WIDTH, 1 << 14, SITE, top_k=TopK(64)),
        of_programs(lambda nth: kinds(OWN, nth, NUM_REQUESTS)["64 features each"]),
    ),
    "rules": Case("64 requests x 128 tokens, 16 rules of 16 comparisons for each", OWN, of_programs(compare_256)),
    "strongest": Case(
        "8 strongest features of 131,072 at each of 8,192 tokens", Shape(WIDTH, 1 << 17, SITE), find_strongest
    ),
    "mean": Case("mean of the vectors of a prompt of 8,192 tokens", OWN, record_mean),
}


def run_once(case: Case) -> dict[str, float]:
    """Run a case in this process; bytes and seconds."""
    tables = Tables(StandIn(), case.shape, NUM_REQUESTS + 1, NUM_TOKENS, TorchExecutor)
    hidden, residual = torch.randn(2, NUM_TOKENS, WIDTH).bfloat16()
    tables.steering.executor.map_tokens(tables.batch([tables.add(program_of(clamps([0])))], 1, first_position=1))
    steer(hidden, residual, SITE)
    tables.steering.executor.clear()
    case.prepare(tables)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the high-water mark so far
    started = time.perf_counter()
    steer(hidden, residual, SITE)
    return {"bytes": memory("VmHWM") - before, "seconds": time.perf_counter() - started}


def measure(name: str) -> str:
    """Run a case in a fresh process, and return its line of the table."""
    command = [sys.executable, "-m", "benchmarks.peak_memory", "--step", name]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    megabytes = found["bytes"] / 1e6
    return (
        f"| {CASES[name].title} | {megabytes:.0f}{'' if megabytes <= TARGET_MB else ' (!)'} | {found['seconds']:.1f} |"
    )


def main() -> None:
    """Run the benchmark and print the table; `--step` is how it starts its own processes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--case", action="append", choices=CASES, help="only this one")
    parser.add_argument("--write", action="store_true", help="also write the table under benchmarks/results")
    parser.add_argument("--step", choices=CASES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        print(json.dumps(run_once(CASES[args.step])))
        return
    lines = [
        f"# Peak memory of a step, {date.today().isoformat()}",
        "",
        f"`{' '.join(['python -m benchmarks.peak_memory', *sys.argv[1:]])}`: the op of one site of width {WIDTH}, bf16, by "
        "the torch executor; a fresh process a line.",
        f"Peak is memory above what is held before the step. Target: at most {TARGET_MB} MB.",
        machine(),
        "",
        "| step | peak, MB | seconds |",
        "|---|--:|--:|",
    ]
    for name in args.case or CASES:
        lines.append(measure(name))
        print(lines[-1], file=sys.stderr, flush=True)
    text = "\n".join(lines) + "\n"
    print(text)
    if args.write:
        (RESULTS / f"{date.today().isoformat()}-peak-memory.md").write_text(text)


if __name__ == "__main__":
    main()
