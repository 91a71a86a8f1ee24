"""
Graphs that are captured once for each size of batch, and replayed while requests come and go.

Each replay is held against the same launches without a graph, on tables of their own that have the same contents. Then steps
are run as an engine runs them, and it is counted where the host waits for the device: while a request is admitted, tokens
are mapped, the graph is replayed, and what a step showed is fetched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import torch
from benchmarks.h200.bare_imports import ROOT
from benchmarks.h200.device import Card, same_bits
from benchmarks.h200.record import Record
from benchmarks.h200.tables import Requests, Shape, Tables, kinds, steer
from tests.support.random_steps import NUM_SITES, Request, Step, TableEngine, random_program, random_saes, random_sites
from torch import Tensor

from saeclamp_server.engine.worker.site_vectors import SiteVectors
from saeclamp_server.engine.worker.triton_executor import TritonExecutor

SIZES, DRY_SIZES = (1, 8, 64, 256, 512), (1, 4)
NUM_CONTENTS, DRY_CONTENTS = 20, 2
NUM_PROGRAMS = 8
STEADY_STEPS = 20


def run(device: Card, record: Record) -> None:
    """Replay, then look for waits."""
    width = 64 if device.is_dry else 4096
    for size in DRY_SIZES if device.is_dry else SIZES:
        record.add("replayed", replay(device, size, width, DRY_CONTENTS if device.is_dry else NUM_CONTENTS))
    look_for_waits(device, record, width)


def replay(device: Card, size: int, width: int, num_contents: int) -> dict[str, Any]:
    """Replay one graph with other contents each time. Raises AssertionError where it does not do what launches do."""
    random = Random(size)
    saes = random_saes(random, width, with_top_k=False)
    captured, launched = (
        TableEngine(saes, NUM_PROGRAMS, size, executor=TritonExecutor, device=device.torch) for _ in range(2)
    )
    sites = [_to(device, *pair) for pair in random_sites(random, size, width, torch.bfloat16)]

    def all_sites(engine: TableEngine) -> None:
        for number, vectors in enumerate(sites):
            engine.executor.judge(number, vectors)
            engine.executor.edit(number, vectors)

    captured.executor.clear()
    again = device.capture(lambda: all_sites(captured))
    addresses = _addresses(captured)
    num_edited, step = 0, Step([])
    for _ in range(num_contents):
        step = _new_contents(random, saes, size, (captured, launched), step)
        before = random_sites(random, size, width, torch.bfloat16)
        after = []
        for engine, call in ((captured, again), (launched, lambda: all_sites(launched))):
            for vectors, pair in zip(sites, before, strict=True):
                vectors.hidden.copy_(pair[0])
                if vectors.residual is not None:
                    vectors.residual.copy_(pair[1])
            engine.map(step)
            call()
            after.append([vectors.hidden.clone() for vectors in sites])
        assert all(map(same_bits, *after)), "a replay edits as launches do"
        num_edited += sum(
            int((one != pair[0].to(one)).any(dim=1).sum()) for one, pair in zip(after[0], before, strict=True)
        )
    assert _addresses(captured) == addresses, "tables stay where they are"
    for name in ("headers", "first_held", "num_held"):
        assert torch.equal(getattr(captured.programs, name), getattr(launched.programs, name)), name
    assert torch.equal(captured.programs.sums[:, :, :2], launched.programs.sums[:, :, :2]), "counts"
    return {"size": size, "sites": NUM_SITES, "contents": num_contents, "edited_vectors": num_edited}


def _new_contents(random: Random, saes: Any, size: int, engines: Sequence[TableEngine], before: Step) -> Step:
    """Let other requests run than before, under the same numbers in all tables; some tokens are padding."""
    for request, _ in before.requests:
        for engine in engines:
            engine.remove(request)
    left, chosen = size, []
    for nth in range(NUM_PROGRAMS):
        num = min(left, random.randint(1, max(1, size // 4)), 60)
        if num == 0:
            break
        program = random_program(random, saes, 9) if random.random() < 0.9 else None
        request = Request(str(nth), program, 9, [random.randrange(8) for _ in range(64)])
        for engine in engines:
            engine.admit(request)
        chosen.append((request, num))
        left -= num
    return Step(chosen)


def _to(device: Card, hidden: Tensor, residual: Tensor | None) -> SiteVectors:
    return SiteVectors(
        hidden.to(device.torch),
        None if residual is None else residual.to(device.torch),
        whole_stream=True,
        norm_eps=None,
    )


def _addresses(engine: TableEngine) -> list[int]:
    tensors = [*vars(engine.programs).values(), *vars(engine.step_tables).values()]
    return [one.data_ptr() for one in tensors if isinstance(one, Tensor)]


def look_for_waits(device: Card, record: Record, width: int) -> None:
    """Run steps of an engine, and put on record where the host waits, and what it calls of CUDA in a steady step."""
    shape = Shape(width, num_features=256, sae_at=0, banks_at=[1])
    num = 2 if device.is_dry else 64
    tables = Tables(device, shape, num_programs=num + 1, num_tokens=num + 1)
    requests = Requests(device, tables, num_most=num + 1)
    hidden, residual = torch.randn(2, num + 1, width, device=device.torch).bfloat16()

    def forward() -> None:
        for site in range(2):
            steer(hidden, residual, site)

    tables.steering.executor.clear()
    again = device.capture(forward)
    for nth in range(num):
        names = ("16 features each", "3 features read", "a rule each")
        requests.come(kinds(shape, nth, num)[names[nth % len(names)]])
    position = iter(range(1, 1 << 20))

    def step() -> None:
        requests.positions.fill_(at := next(position))
        requests.steps.begin(requests.inputs(at))
        again()

    step()  # compiles
    found: dict[str, Counter[str]] = {}
    requests.come(kinds(shape, num, num)["64 features each"])
    _watch(device, found, "a request is admitted", step)
    _watch(device, found, "a steady step is mapped and replayed", step)
    collected: list[Callable[[], Any]] = []
    _watch(device, found, "what a step showed is copied", lambda: collected.append(requests.steps.collect(None)))
    step()
    _watch(device, found, "what the step before showed is fetched", lambda: collected[0]())
    _watch(device, found, "a request ends", lambda: requests.go(requests.ids[-1]))
    record.put("waits", {phase: dict(where) for phase, where in found.items()})
    assert not tables.steering.requests.failures, "all were admitted"
    step()

    def steps() -> None:
        for _ in range(STEADY_STEPS):
            step()

    calls = device.runtime_calls(steps)
    record.put("runtime_calls", {"steps": STEADY_STEPS, **calls})


def _watch(device: Card, found: dict[str, Counter[str]], phase: str, call: Callable[[], Any]) -> None:
    device.wait()
    with device.waits() as where:
        call()
    found[phase] = Counter({place.removeprefix(f"{ROOT}/"): num for place, num in where.items()})
