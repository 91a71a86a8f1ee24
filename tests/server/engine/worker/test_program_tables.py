"""The tables never move, and a request that comes finds nothing of the one whose number it has."""

from __future__ import annotations

from random import Random

import pytest
import torch
from tests.support.random_steps import (
    NUM_SITES,
    Request,
    Step,
    TableEngine,
    random_program,
    random_saes,
    random_sites,
)
from torch import Tensor

from saeclamp_server.engine.worker.program_layout import FOREVER


def tensors_of(thing: object) -> dict[str, Tensor]:
    """All tensors in an object, and in those that it has."""
    found: dict[str, Tensor] = {}
    for name, value in vars(thing).items():
        if isinstance(value, Tensor):
            found[name] = value
        elif hasattr(value, "__dict__") and not isinstance(value, torch.device):
            found |= {f"{name}.{inner}": tensor for inner, tensor in tensors_of(value).items()}
    return found


def places_of(engine: TableEngine) -> dict[str, int]:
    """Where all tables are."""
    tables = tensors_of(engine.programs) | tensors_of(engine.step_tables)
    return {name: tensor.data_ptr() for name, tensor in tables.items()}


def steered(random: Random, engine: TableEngine, saes: object, name: str) -> Request:
    program = random_program(random, saes, 9)  # type: ignore[arg-type]
    request = Request(name, program, 9, [random.randrange(8) for _ in range(64)])
    engine.admit(request)
    return request


def test_addresses_never_change_whatever_comes_and_goes() -> None:
    random = Random(0)
    saes = random_saes(random, 16)
    engine = TableEngine(saes, num_programs=4, num_tokens=32)
    places = {
        name: tensor.data_ptr()
        for part in (engine.programs, engine.step_tables)
        for name, tensor in tensors_of(part).items()
    }
    assert len(places) > 15
    running: list[Request] = []
    for step in range(1000):
        if len(running) < 4 and random.random() < 0.5:
            running.append(steered(random, engine, saes, str(step)))
        if running:
            requests = [(request, random.randint(1, 8)) for request in running]
            batch = Step(requests)
            engine.run(batch, random_sites(random, len(batch.tokens()), 16, torch.float32))
            for request, num in requests:
                request.computed += num
            for request in [request for request in running if request.computed > 40 or random.random() < 0.2]:
                running.remove(request)
                engine.remove(request)
    now = {
        name: tensor.data_ptr()
        for part in (engine.programs, engine.step_tables)
        for name, tensor in tensors_of(part).items()
    }
    assert now == places
    assert not engine.programs.edits.num_programs_at.any() or running
    assert engine.programs.num_with_ranges <= len(running)


def test_a_number_that_is_given_again_has_counters_at_zero() -> None:
    random = Random(1)
    saes = random_saes(random, 16)
    engine = TableEngine(saes, num_programs=1, num_tokens=64)
    for name in ("first", "second"):
        request = steered(random, engine, saes, name)
        fresh = engine.programs.counters([request.number])
        assert not fresh.sums.any()
        assert fresh.peaks.isinf().all()
        assert (fresh.first_held == FOREVER).all()
        assert not fresh.num_held.any()
        assert int(fresh.reached) == 0
        engine.run(Step([(request, 40)]), random_sites(random, 40, 16, torch.float32))
        used = engine.remove(request)
        assert used is not None
        assert int(used.reached) == 40
        assert used.sums.any() or used.num_held.any()


def test_full_tables_take_nobody_and_lose_nobody() -> None:
    random = Random(2)
    saes = random_saes(random, 16)
    engine = TableEngine(saes, num_programs=2, num_tokens=8)
    one, two = (steered(random, engine, saes, name) for name in "ab")
    with pytest.raises(RuntimeError, match="2 requests are steered at once, and there is no room for another"):
        steered(random, engine, saes, "c")
    before = engine.programs.edits.ints.clone()
    engine.remove(one)
    assert not engine.programs.is_full
    three = steered(random, engine, saes, "d")
    assert three.number == one.number != two.number
    rows = engine.programs.edits.num_rows
    kept = slice(two.number * rows, (two.number + 1) * rows)
    assert torch.equal(engine.programs.edits.ints[kept], before[kept])


def test_a_step_without_steered_requests_reads_and_edits_nothing() -> None:
    random = Random(3)
    saes = random_saes(random, 16)
    engine = TableEngine(saes, num_programs=2, num_tokens=8)
    steered(random, engine, saes, "not in the batch")
    plain = Request("plain", None, 4, [5] * 64)
    sites = random_sites(random, 4, 16, torch.float32)
    for after, (hidden, _) in zip(engine.run(Step([(plain, 4)]), sites), sites, strict=True):
        assert torch.equal(after, hidden)
    engine.executor.clear()
    for site in range(NUM_SITES):  # which would fail, if anything looked at the vectors
        engine.executor.judge(site, None)  # type: ignore[arg-type]
        engine.executor.edit(site, None)  # type: ignore[arg-type]


def test_tokens_are_told_their_program_and_what_is_computed_again_is_forgotten() -> None:
    random = Random(4)
    saes = random_saes(random, 16)
    engine = TableEngine(saes, num_programs=2, num_tokens=16)
    one, two = (steered(random, engine, saes, name) for name in "ab")
    plain = Request("plain", None, 4, [0, 5, 1, 6, 5, 5, 5, 5])
    one.computed = 3
    engine.programs.first_held[one.number, :3] = torch.tensor([2, 3, 9], dtype=torch.int32)
    engine.run(Step([(two, 2), (plain, 3), (one, 1)]), random_sites(random, 6, 16, torch.float32))
    tables = engine.step_tables
    assert tables.program[:6].tolist() == [two.number] * 2 + [-1] * 3 + [one.number]
    assert tables.position[:6].tolist() == [0, 1, 0, 1, 2, 3]
    assert tables.is_sink[2:5].tolist() == [True, False, True]
    assert engine.programs.first_held[one.number, 0] == 2
    assert engine.programs.first_held[one.number, 2] != 9
