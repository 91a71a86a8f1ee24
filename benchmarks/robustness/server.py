"""A server of a tiny random model, and what its processes take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
from tests.support.checkpoints import make_model, make_sae
from tests.support.serving import Server, serve

from saeclamp_server.packaged_model import prepared_model

NUM_LAYERS = 2
WIDTH = 64
FLAGS = ("--enforce-eager", "--dtype", "float32", "--max-model-len", "1024", "--served-model-name", "tiny")
SMALL_CACHE = ("--kv-cache-memory-bytes", str(2**26))
"""A KV cache that is full early: until it is, its table of blocks grows, and hides what would grow for ever."""
REST_S = 15
PROCESSES = ("the server", "the engine", "its worker")
SMALLEST = 100
"""Megabytes below which a process is a helper of Python's."""


def make_files(folder: Path) -> list[str]:
    """Write a model and an SAE behind each of its layers; return what `serve` is given."""
    model, flags = folder / "model", []
    if not model.exists():
        make_model(model, prepared_model(), num_layers=NUM_LAYERS)
    for layer in range(NUM_LAYERS):
        sae = folder / f"sae{layer}"
        if not sae.exists():
            make_sae(sae, layer=layer, d_in=WIDTH, seed=layer, threshold=0.5)
        flags += ["--sae", f"sae{layer}={sae}"]
    flags += ["--vector-site", "all", "--vectors", str(folder / "vectors")]
    return [str(model), *flags, "--variants", f"sqlite:///{folder / 'variants.sqlite'}", *FLAGS]


@contextmanager
def tiny_server(folder: Path, *flags: str) -> Iterator[Server]:
    """Serve the files of a folder, which it makes if need be, until the block ends."""
    model, *others = make_files(folder)
    with serve(folder / "server.log", model, *others, *flags, name="tiny") as server:
        yield server


class Usage(NamedTuple):
    """What the processes of a server take together."""

    seconds: float
    """Since the server was first looked at."""
    done: int
    """Requests so far."""
    megabytes: float
    """Resident memory."""
    by_process: Mapping[str, float]
    """The same of each process."""
    threads: int
    descriptors: int


class Watch:
    """Looks at a server's processes from time to time."""

    def __init__(self, pid: int) -> None:
        self._process, self._start = psutil.Process(pid), time.monotonic()
        self.usages: list[Usage] = []
        self.rested: Usage | None = None
        """Usage when nothing had been asked for a while."""

    def look(self, done: int) -> Usage:
        """Note what its processes take now."""
        usage = self._usage(done)
        self.usages.append(usage)
        return usage

    def rest(self) -> None:
        """Wait until what has ended is put away, and look once more: allocators give back late."""
        time.sleep(REST_S)
        self.rested = self._usage(self.usages[-1].done)

    def _usage(self, done: int) -> Usage:
        # children in the order in which they were started: the engine, a helper of Python's of a few megabytes, the worker
        tree = [self._process, *self._process.children(recursive=True)]
        megabytes = [process.memory_info().rss / 2**20 for process in tree]
        large = [part for part in megabytes if part >= SMALLEST]
        usage = Usage(
            seconds=time.monotonic() - self._start,
            done=done,
            megabytes=sum(megabytes),
            by_process=dict(zip(PROCESSES, large, strict=False)),
            threads=sum(process.num_threads() for process in tree),
            descriptors=sum(process.num_fds() for process in tree),
        )
        parts = " + ".join(f"{part:.0f}" for part in megabytes)
        print(f"{usage.seconds:.0f} s, {done} requests: {parts} MB, {usage.threads} threads", flush=True)
        return usage

    def report(self) -> list[str]:
        """Write the first and last looks, and the slopes of the second half: the first fills caches."""
        second_half = self.usages[len(self.usages) // 2 :]
        shown = [self.usages[0], second_half[0], self.usages[-1], *([self.rested] if self.rested else [])]
        heads = ["at the start", "in the middle", "at the end", *(["after a rest"] if self.rested else [])]
        lines = [
            f"| | {' | '.join(heads)} | per 1,000 requests, second half |",
            f"|---|{'--:|' * (len(heads) + 1)}",
        ]
        for name, of in COLUMNS.items():
            slope = _slope([usage.done for usage in second_half], [of(usage) for usage in second_half])
            values = " | ".join(f"{of(usage):.0f}" for usage in shown)
            lines.append(f"| {name} | {values} | {1000 * slope:+.2f} |")
        return lines


def _megabytes_of(process: str) -> Callable[[Usage], float]:
    return lambda usage: usage.by_process[process]


COLUMNS: Mapping[str, Callable[[Usage], float]] = {
    "megabytes": lambda usage: usage.megabytes,
    **{f"megabytes of {process}": _megabytes_of(process) for process in PROCESSES},
    "threads": lambda usage: usage.threads,
    "descriptors": lambda usage: usage.descriptors,
}


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    return statistics.linear_regression(x, y).slope if len({*x}) > 1 else 0.0
