"""
Tokens per second through Ray Serve, beside those of a server that is asked directly.

Each engine computes with one thread. Whatever stands beside it (the client, Ray's proxy, what answers HTTP) shares the
machine's cores, so on two of them a second replica cannot double the speed.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.overhead.load import Run, run
from tests.support.databases import postgresql
from tests.support.fleet_files import FleetFiles
from tests.support.ray_cluster import Cluster
from tests.support.serving import Server, serve

from saeclamp_server.packaged_model import PACKAGED_MODEL, prepared_model

IN_FLIGHT = (1, 8, 32)
THREADS = "nobind"
"""`VLLM_CPU_OMP_THREADS_BIND`: with OMP_NUM_THREADS=1 each engine has a thread, on whichever core is free."""


class Model(NamedTuple):
    """A model, and what is asked of it."""

    name: str
    """Name that it is served under."""
    title: str
    argv: Sequence[str]
    feature: str
    num_tokens: int
    """Tokens of an answer."""
    num_answers: int
    """Answers of a run, at least."""

    def steering(self, number: int) -> dict[str, Any]:
        """Move a feature a little."""
        return {"interventions": [{"op": "add", "feature": self.feature, "value": 0.5, "unit": "act"}]}


def measure(rounds: int) -> list[str]:
    """Return the table's lines."""
    os.environ |= {"VLLM_CPU_OMP_THREADS_BIND": THREADS, "OMP_NUM_THREADS": "1"}
    lines = [
        "Steered streams; each engine has one thread. Tokens per second: the median of the rounds. Ratios: of two runs, one "
        "right behind the other, the median (least - most).",
        "",
        "| model | streams at once | direct | Ray, 1 replica | / direct | Ray, 2 replicas | / direct | 2 replicas / 1 |",
        "|---|--:|--:|--:|---|--:|---|--:|",
    ]
    with tempfile.TemporaryDirectory() as name:
        for model in _models(Path(name)):
            lines += _measured(model, rounds, Path(name))
    return lines


def _models(folder: Path) -> list[Model]:
    packaged = [PACKAGED_MODEL, "--sae", "bundled", "--max-model-len", "1024", "--max-num-seqs", "32"]
    packaged += ["--enforce-eager", "--dtype", "float32", "--kv-cache-memory-bytes", str(256 << 20)]
    tiny = FleetFiles.made(folder, prepared_model()).argv()
    tiny[tiny.index("--max-num-seqs") + 1] = "32"
    return [
        Model("tiny", "tiny (2 layers of 64: nearly all is HTTP)", tiny, "low/3", 128, 16),
        Model(PACKAGED_MODEL, PACKAGED_MODEL, packaged, "bundled/golden-gate", 32, 4),
    ]


def _measured(model: Model, rounds: int, folder: Path) -> list[str]:
    ratios: dict[tuple[int, int], list[float]] = {}
    speeds: dict[tuple[int, int], list[float]] = {}
    with (
        postgresql(folder / f"{model.name}-database") as url,
        serve(folder / f"{model.name}.log", *model.argv, name=model.name, whole=True, verbose=False) as direct,
    ):
        cluster = Cluster(folder, [*model.argv, "--fleet", model.name, "--variants", url], THREADS)
        try:
            for replicas in (1, 2):
                cluster.deploy(replicas=replicas)
                served = Server(cluster.url, model.name)
                for in_flight in IN_FLIGHT:
                    _run(model, served, in_flight)  # warm
                    for _ in range(rounds):
                        pair = _run(model, direct, in_flight), _run(model, served, in_flight)
                        ratios.setdefault((replicas, in_flight), []).append(pair[1].speed / pair[0].speed)
                        for kind, one in zip((0, replicas), pair, strict=True):
                            speeds.setdefault((kind, in_flight), []).append(one.speed)
                    print(f"{model.name}, {replicas}, {in_flight}: {ratios[replicas, in_flight]}", file=sys.stderr)
        finally:
            cluster.end()
    return [_line(model, in_flight, speeds, ratios) for in_flight in IN_FLIGHT]


def _run(model: Model, server: Server, in_flight: int) -> Run:
    """Ask, so often one after the other that a run has so many answers."""
    runs = [
        asyncio.run(run(server, in_flight, model.num_tokens, model.steering))
        for _ in range(max(1, model.num_answers // in_flight))
    ]
    return Run(sum(one.num_tokens for one in runs), sum(one.seconds for one in runs))


def _line(
    model: Model,
    in_flight: int,
    speeds: dict[tuple[int, int], list[float]],
    ratios: dict[tuple[int, int], list[float]],
) -> str:
    speed = {kind: f"{statistics.median(speeds[kind, in_flight]):.0f}" for kind in (0, 1, 2)}
    one, two = (statistics.median(ratios[replicas, in_flight]) for replicas in (1, 2))
    spread = {
        replicas: f"{statistics.median(each):.2f} ({min(each):.2f} - {max(each):.2f})"
        for replicas in (1, 2)
        for each in [ratios[replicas, in_flight]]
    }
    cells = (model.title, in_flight, speed[0], speed[1], spread[1], speed[2], spread[2], f"{two / one:.2f}")
    return f"| {' | '.join(map(str, cells))} |"
