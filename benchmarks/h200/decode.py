"""
Decoding by a model of 8B's shape: a step is one graph, and what its op does in it is in the tables.

The same graph is replayed with all settings, in turn with one that has no op. `map_tokens` is part of a steered step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any

import torch
from benchmarks.h200.device import Card, compare, median
from benchmarks.h200.model import TINY, Decoder, ModelShape
from benchmarks.h200.record import Record
from benchmarks.h200.tables import Shape, Tables, kinds, steer

from saeclamp_server.engine.worker.step_tables import Batch

BATCHES, DRY_BATCHES = (64, 256, 1), (2,)
ROUNDS, STEPS = 7, 10
ONE_SITE = (
    "1 feature, the same for all",
    "1 feature each",
    "16 features each",
    "64 features each",
    "a rule each",
    "3 features read",
)
ALL_SITES = ("1 feature each", "a vector at each site")
IDLE = "idle"


def run(device: Card, record: Record) -> None:
    """Time each size of batch, hooked at one layer and at all."""
    model = Decoder(TINY if device.is_dry else ModelShape(), device.torch)
    layers, batches = model.shape.num_layers, DRY_BATCHES if device.is_dry else BATCHES
    shape = shape_of(model.shape)
    settings = dict.fromkeys((*ONE_SITE, *ALL_SITES))
    tables = Tables(device, shape, len(settings) * max(batches), max(batches))
    numbers = _admit(device, record, tables, shape, settings, max(batches))
    ids = torch.zeros(max(batches), dtype=torch.int64, device=device.torch)
    for size in batches:
        batch = tables.batch([-1] * size, 1, first_position=1)
        tables.steering.executor.clear()
        plain = device.capture(_step(model, ids[:size], batch, []))
        for sites, names in (([shape.sae_at], ONE_SITE), (range(layers), ALL_SITES)):
            tables.steering.executor.clear()
            hooked = device.capture(_step(model, ids[:size], batch, sites))
            for name in (IDLE, *names):
                if record.left < 5 and not device.is_dry:
                    record.add("left_out", [size, len(sites), name])
                    continue
                call = _steered(tables, batch, None if name == IDLE else numbers[name][:size], hooked)
                call()
                times = compare(device, plain, call, 1 if device.is_dry else ROUNDS, 1 if device.is_dry else STEPS)
                record.add("steps", {"batch": size, "sites": len(sites), "setting": name, **times})
        _time_op_alone(device, record, tables, numbers, batch, shape)
    _check_counts(tables, numbers)


def shape_of(model: ModelShape) -> Shape:
    """Say what is served: an SAE in the middle, and vectors at all layers."""
    middle = model.num_layers // 2
    return Shape(model.width, 256 if model is TINY else 1 << 14, middle, [*range(model.num_layers)])


def _admit(
    device: Card, record: Record, tables: Tables, shape: Shape, settings: Collection[str], num: int
) -> dict[str, list[int]]:
    """Write the programs of all settings into the tables, and return their numbers; time it."""
    numbers: dict[str, list[int]] = {}
    tables.steering.programs.remove([tables.add(kinds(shape, 0, num)["64 features each"])])
    for name in settings:
        programs = [kinds(shape, nth, num)[name] for nth in range(num)]
        device.wait()
        started = time.perf_counter()
        numbers[name] = [tables.add(program) for program in programs]
        device.wait()
        record.add("admission_us", [name, round((time.perf_counter() - started) / num * 1e6)])
    return numbers


def _step(model: Decoder, ids: torch.Tensor, batch: Batch, sites: Collection[int]) -> Callable[[], None]:
    def call() -> None:
        model.decode(ids, sites)
        # vLLM counts positions up on the device, too; at a position that was counted nothing is counted again
        batch.positions.add_(1)

    return call


def _steered(tables: Tables, batch: Batch, numbers: list[int] | None, graph: Callable[[], Any]) -> Callable[[], None]:
    """Make what runs a step of requests with these programs; without any where nobody is steered."""
    executor = tables.steering.executor
    programs = None if numbers is None else torch.tensor(numbers, dtype=torch.int32).to(batch.program)

    def call() -> None:
        if programs is None:
            executor.clear()
        else:
            executor.map_tokens(batch._replace(program=programs))
        graph()

    return call


def _time_op_alone(
    device: Card, record: Record, tables: Tables, numbers: dict[str, list[int]], batch: Batch, shape: Shape
) -> None:
    """Time the op of one site in a graph of its own, and the mapping; microseconds."""
    size = len(batch.program)
    hidden, residual = torch.randn(2, size, shape.width, device=device.torch).bfloat16()
    num = 2 if device.is_dry else 50

    def many() -> None:
        for _ in range(num):
            steer(hidden, residual, shape.sae_at)

    tables.steering.executor.clear()
    graph = device.capture(many)
    for name in (IDLE, *ONE_SITE):
        if name == IDLE:
            tables.steering.executor.clear()
        else:
            _steered(tables, batch, numbers[name][:size], lambda: None)()
        graph()
        times = [device.milliseconds(graph, 1) / num * 1e3 for _ in range(1 if device.is_dry else 5)]
        record.add("op_us", {"batch": size, "setting": name, "us": median(times)})


def _check_counts(tables: Tables, numbers: dict[str, list[int]]) -> None:
    """Check that edits were made at all, by what the tables have counted."""
    sums = tables.steering.programs.sums[:, :, :2].sum(dim=(1, 2)).cpu()
    for name in ("1 feature each", "16 features each", "64 features each", "a vector at each site"):
        assert sums[numbers[name][0]] > 0, f"{name}: no edit was counted"
