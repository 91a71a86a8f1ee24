"""
Steps enqueued two deep, as vLLM's asynchronous scheduling does: the next step is launched while one runs.

Between a step's launch and the next there is a time in which a scheduler would work; the loop spends it spinning. What a
step gave is fetched when the next one has been launched. A host that waits for the device anywhere in between lets the
card run dry: that is what is measured, as the share of time between the graph of one step and that of the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from benchmarks.h200.decode import IDLE, shape_of
from benchmarks.h200.device import Card, median
from benchmarks.h200.model import TINY, Decoder, ModelShape
from benchmarks.h200.record import Record
from benchmarks.h200.tables import Requests, Shape, Tables, kinds

BATCHES, DRY_BATCHES = (64, 256), (2,)
STEPS, DRY_STEPS, SKIPPED = 60, 3, 1
HOST_MS = 2.0
"""Of a scheduler's work in each step: assumed, not measured."""
PLAIN, NEW_REQUESTS = "without op", "1 feature each, a new request each step"
SETTINGS = (
    PLAIN,
    IDLE,
    "1 feature each",
    "16 features each",
    NEW_REQUESTS,
    "3 features read",
    "a rule that would abort",
)


class Moments(NamedTuple):
    """Events at both ends of a step's graph."""

    begin: Any
    end: Any


class Loop:
    """The loop of an engine with a batch of one size."""

    def __init__(self, device: Card, model: Decoder, tables: Tables, size: int) -> None:
        self._device, self._tables, self.requests = device, tables, Requests(device, tables, size)
        self._ids = torch.zeros(size, dtype=torch.int64, device=device.torch)
        self._hidden = torch.zeros(size, model.shape.width, dtype=torch.bfloat16, device=device.torch)
        self._copies = None if device.is_dry else torch.cuda.Stream()
        self._position = 1

        def decode(sites: list[int]) -> Callable[[], None]:
            def call() -> None:
                model.decode(self._ids, sites)
                self.requests.positions.add_(1)

            return call

        tables.steering.executor.clear()
        self.plain = device.capture(decode([]))
        self.hooked = device.capture(decode([model.shape.num_layers // 2]))

    def run(self, num_steps: int, is_plain: bool, before: Callable[[], None]) -> list[Moments]:
        """Run steps, each preceded by a call, and return their events."""
        self._position = 1
        self.requests.positions.fill_(1)
        moments: list[Moments] = []
        pending: Callable[[], Any] | None = None
        for _ in range(num_steps):
            before()
            _spin(0.0 if self._device.is_dry else HOST_MS)
            launched = self._launch(is_plain, moments)
            if pending is not None:
                pending()
            pending = launched
        assert pending is not None
        pending()
        self._device.wait()
        return moments

    def _launch(self, is_plain: bool, moments: list[Moments]) -> Callable[[], Any]:
        """Launch a step, and return what fetches its results."""
        if not is_plain:
            self.requests.steps.begin(self.requests.inputs(self._position))
        begin = self._device.event(times=True)
        (self.plain if is_plain else self.hooked)()
        moments.append(Moments(begin, self._device.event(times=True)))
        self._position += 1
        fetch_report = None if is_plain else self.requests.steps.collect(self._hidden)
        fetch_ids = self._copy_ids()

        def fetch() -> None:
            fetch_ids()
            if fetch_report is not None:
                fetch_report()

        return fetch

    def _copy_ids(self) -> Callable[[], Any]:
        """Copy sampled ids beside the model's stream, and return what waits for them."""
        if self._copies is None:
            return self._ids.clone
        ids = self._ids.clone()
        host = torch.empty(ids.shape, dtype=ids.dtype, pin_memory=True)
        computed = self._device.event()
        with torch.cuda.stream(self._copies):
            self._copies.wait_event(computed)
            host.copy_(ids, non_blocking=True)
            ids.record_stream(self._copies)
            arrived = self._device.event()
        return arrived.synchronize


def run(device: Card, record: Record) -> None:
    """Run the loop in each setting."""
    model = Decoder(TINY if device.is_dry else ModelShape(), device.torch)
    shape, num_steps = shape_of(model.shape), DRY_STEPS if device.is_dry else STEPS
    record.put("host_ms", HOST_MS)
    for size in DRY_BATCHES if device.is_dry else BATCHES:
        tables = Tables(device, shape, size + 1, size)
        loop = Loop(device, model, tables, size)
        for name in SETTINGS:
            record.add("loops", {"batch": size, "setting": name, **_measure(loop, shape, size, name, num_steps)})


def _measure(loop: Loop, shape: Shape, size: int, name: str, num_steps: int) -> dict[str, Any]:
    kind = "1 feature each" if name == NEW_REQUESTS else name
    programs = [kinds(shape, nth, size).get(kind) for nth in range(size)]
    for program in programs:
        loop.requests.come(program)

    def replace_one() -> None:
        loop.requests.go(loop.requests.ids[0])
        loop.requests.come(programs[0])

    before = replace_one if name == NEW_REQUESTS else lambda: None
    loop.run(2, name == PLAIN, before)
    moments = loop.run(num_steps, name == PLAIN, before)[SKIPPED:]
    gaps = [one.end.elapsed_time(other.begin) for one, other in pairwise(moments)]
    whole = moments[0].end.elapsed_time(moments[-1].end)
    for request_id in loop.requests.ids:
        loop.requests.go(request_id)
    return {
        "step_ms": float(f"{whole / len(gaps):.4g}"),
        "idle_share": round(sum(gaps) / whole, 4),
        "gap_us": float(f"{median(gaps) * 1e3:.3g}"),
    }


def _spin(milliseconds: float) -> None:
    end = time.perf_counter() + milliseconds / 1e3
    while time.perf_counter() < end:
        pass
