"""A server of a tiny random model, and what its processes take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
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
    by_process: tuple[float, ...]
    """The same of each: the server, the engine, and its worker."""
    threads: int
    descriptors: int


class Watch:
    """Looks at a server's processes from time to time."""

    def __init__(self, pid: int) -> None:
        self._process, self._start = psutil.Process(pid), time.monotonic()
        self.usages: list[Usage] = []

    def look(self, done: int) -> Usage:
        """Add up what its processes take now."""
        tree = [self._process, *self._process.children(recursive=True)]
        megabytes = [process.memory_info().rss / 2**20 for process in tree]
        usage = Usage(
            seconds=time.monotonic() - self._start,
            done=done,
            megabytes=sum(megabytes),
            by_process=tuple(megabytes),
            threads=sum(process.num_threads() for process in tree),
            descriptors=sum(process.num_fds() for process in tree),
        )
        self.usages.append(usage)
        parts = " + ".join(f"{part:.0f}" for part in megabytes)
        print(f"{usage.seconds:.0f} s, {done} requests: {parts} MB, {usage.threads} threads", flush=True)
        return usage

    def report(self) -> list[str]:
        """Write the first and last looks, and the slopes of the second half: the first fills caches."""
        second_half = self.usages[len(self.usages) // 2 :]
        lines = [
            "| | at the start | in the middle | at the end | per 1,000 requests, second half |",
            "|---|--:|--:|--:|--:|",
        ]
        shown = (self.usages[0], second_half[0], self.usages[-1])
        for name in ("megabytes", "threads", "descriptors"):
            slope = _slope([usage.done for usage in second_half], [getattr(usage, name) for usage in second_half])
            values = " | ".join(f"{getattr(usage, name):.0f}" for usage in shown)
            lines.append(f"| {name} | {values} | {1000 * slope:+.2f} |")
        return lines


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    return statistics.linear_regression(x, y).slope if len({*x}) > 1 else 0.0
