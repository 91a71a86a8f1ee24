"""
The kernels on the card against the slow twin, a loop in fp64: vectors, what was read, judged and counted.

Each case is run three times. Its edited vectors and its counts must be the same each time; sums and maxima of activations
are added up by whichever token comes first, so their last digits need not be.
"""

from __future__ import annotations

import time
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from benchmarks.h200.device import Card, same_bits
from benchmarks.h200.record import Record
from numpy.typing import NDArray
from tests.oracles.steered_steps import Made, Placed, Running, SlowEngine, Vector, normalised
from tests.support.random_steps import (
    SPECIAL_IDS,
    Request,
    Step,
    TableEngine,
    check_counters,
    random_program,
    random_saes,
    random_sites,
    sink_norms,
)
from torch import Tensor

from saeclamp_server.engine.worker.program_layout import EDITS
from saeclamp_server.engine.worker.program_tables import Counters
from saeclamp_server.engine.worker.triton_executor import TritonExecutor

NUM_RUNS = 3
MARGIN = 1e-5
"""Distance of an activation from what it is compared with, below which fp32 and fp64 may differ by right."""
WIDTHS, DRY_WIDTHS = (576, 2304, 4096, 8192), (24, 72)
ITEM_TOLERANCE = 1e-4
SUMMED = (2, 3)
"""Columns of `Counters.sums` that are no counts."""


class Size(NamedTuple):
    """Size of a case."""

    num_requests: int
    prompt_len: int
    per_request: int
    """Tokens of each request: its prompt and what follows."""


WHOLE, SMALL = Size(64, 40, 64), Size(3, 4, 6)


class Case(NamedTuple):
    """A step of requests with random programs."""

    seed: int
    width: int
    dtype: torch.dtype
    has_drafts: bool
    size: Size


class Expected(NamedTuple):
    """What the slow twin says."""

    saes: dict[str, Placed]
    requests: list[Request]
    step: Step
    sites: list[tuple[Tensor, Tensor | None]]
    after: list[Tensor]
    made: list[Made]
    running: dict[str, Running]
    scales: NDArray[np.float64]
    """(num_tokens,), root mean square of each token's longest vector, at least 1; errors of its activations grow with it"""
    margin: float


class _Measured(Placed):
    """An SAE of the slow twin that keeps how near to its threshold an activation came, for a vector of its length."""

    margin = np.inf

    def activation(self, feature: int, x: Vector) -> float:
        if self.threshold[feature] > 0:  # at 0 both sides are as good as 0
            pre = self.encoder[feature] @ normalised(self.sae.input_norm, x)[0] + self.bias[feature]
            scale = max(1.0, float(np.sqrt(np.square(x).mean())))
            self.margin = min(self.margin, abs(float(pre - self.threshold[feature])) / scale)
        return super().activation(feature, x)


def run(device: Card, record: Record) -> None:
    """Run the cases of every width and dtype, then more of them as long as there is time."""
    widths, size = (DRY_WIDTHS, SMALL) if device.is_dry else (WIDTHS, WHOLE)
    seed = 0
    while seed < 40 and (seed < 2 * len(widths) or (not device.is_dry and record.left > 10)):
        dtype = (torch.bfloat16, torch.float32)[seed % 2]
        case = Case(seed, widths[seed // 2 % len(widths)], dtype, seed % 4 > 1, size)
        record.add("cases", check(device, case))
        seed += 1
    record.put("tokens", sum(one["tokens"] for one in record.results["cases"]))


def check(device: Card, case: Case) -> dict[str, Any]:
    """Run one case. Raises AssertionError where the kernels differ from the slow twin, or from themselves."""
    started = time.perf_counter()
    expected = expect(case)
    num_redrawn = 0
    while expected.margin < MARGIN:
        num_redrawn += 1
        expected = expect(case._replace(seed=case.seed + 1000 * num_redrawn))
    of_slow = time.perf_counter() - started
    runs = [_run(device, case, expected) for _ in range(NUM_RUNS)]
    for after, counts, _ in runs[1:]:
        assert all(map(same_bits, after, runs[0][0])), f"{case}: edited vectors differ from run to run"
        assert torch.equal(counts, runs[0][1]), f"{case}: counts differ from run to run"
    return {
        "width": case.width,
        "dtype": str(case.dtype).removeprefix("torch."),
        "drafts": case.has_drafts,
        "tokens": len(expected.made),
        "edits": sum(len(one.items) for one in expected.made),
        "rules_held": sum(len(one.held) for one in expected.made),
        "lost": sum(one.is_lost for one in expected.made),
        "largest_error": float(f"{max(error for *_, error in runs):.2g}"),
        "redrawn": num_redrawn,
        "seconds": [round(of_slow, 1), round(time.perf_counter() - started - of_slow, 1)],
    }


def expect(case: Case) -> Expected:
    """Run a case on the slow twin; every fifth request is not steered."""
    random, (num_requests, prompt_len, num_each) = Random(case.seed), case.size
    saes = {
        name: _Measured(one.sae, one.reads_at, one.writes_at)
        for name, one in random_saes(random, case.width, with_top_k=False).items()
    }
    programs = [random_program(random, saes, prompt_len) if n % 5 else None for n in range(num_requests)]
    requests = [
        Request(str(n), program, prompt_len, [random.randrange(8) for _ in range(num_each)])
        for n, program in enumerate(programs)
    ]
    step = Step([(request, num_each) for request in requests])
    if case.has_drafts:
        step.kept_to = {one.name: random.randint(prompt_len, num_each) for one in requests if one.program}
    slow = SlowEngine(saes, SPECIAL_IDS, sink_norms(case.width))
    slow.requests |= {one.name: Running(one.program, prompt_len) for one in requests if one.program}
    tokens = step.tokens()
    sites = random_sites(random, len(tokens), case.width, case.dtype)
    after, made = slow.step(tokens, sites, step.kept_to if case.has_drafts else None)
    lengths = [(hidden if residual is None else hidden + residual).double().norm(dim=1) for hidden, residual in sites]
    scales = (torch.stack(lengths).amax(dim=0) / case.width**0.5).clamp(min=1).numpy()
    compared = [
        abs(one.acts[comparison.sae, comparison.index] - comparison.bound) / scale
        for token, one, scale in zip(tokens, made, scales, strict=True)
        if token.request is not None
        for rule in slow.requests[token.request].program.rules
        for comparison in rule.comparisons
        if (comparison.sae, comparison.index) in one.acts
    ]
    margin = min([*compared, *(one.margin for one in saes.values())])
    return Expected(saes, requests, step, sites, after, made, slow.requests, scales, margin)


def _run(device: Card, case: Case, expected: Expected) -> tuple[list[Tensor], Tensor, float]:
    """Run a case on the kernels, compare, and return the edited vectors, all counts, and the largest relative error."""
    num_tokens = len(expected.made)
    engine = TableEngine(
        expected.saes,
        len(expected.requests),
        num_tokens,
        case.has_drafts,
        executor=TritonExecutor,
        device=device.torch,
        sink_norms=sink_norms(case.width),
    )
    for request in expected.requests:
        engine.admit(request)
    sites = [
        (hidden.to(device.torch), None if residual is None else residual.to(device.torch))
        for hidden, residual in expected.sites
    ]
    after = [one.cpu() for one in engine.run(expected.step, sites)]
    error = max(
        _compare_vectors(case, hidden, wanted, found)
        for (hidden, _), wanted, found in zip(expected.sites, expected.after, after, strict=True)
    )
    _compare_tokens(engine, expected)
    if case.has_drafts:
        engine.settle(expected.step)
    steered = [one for one in expected.requests if one.program]
    counted = engine.programs.counters([one.number for one in steered])
    found = {one.name: Counters._make(column[nth].cpu() for column in counted) for nth, one in enumerate(steered)}
    for name, counters in found.items():
        check_counters(counters, expected.running[name])
    return after, torch.cat([_counts(one) for one in found.values()]), error


def _compare_vectors(case: Case, before: Tensor, wanted: Tensor, found: Tensor) -> float:
    """Compare a site's vectors, and return the largest error by the length of a vector and of its change."""
    untouched = (wanted == before.double()).all(dim=1)
    assert torch.equal(found[untouched], before[untouched]), f"{case}: what nobody touches keeps its bits"
    lost = wanted.isnan().any(dim=1)
    assert found[lost].isnan().all(), f"{case}: lost vectors are marked"
    rest = ~untouched & ~lost
    if not rest.any():
        return 0.0
    whole = wanted[rest].norm(dim=1) + (wanted - before.double())[rest].norm(dim=1)
    error = ((found[rest].double() - wanted[rest]).norm(dim=1) / whole).max()
    # Triton's interpreter cuts off bits of bf16 that a card rounds
    assert error <= (2**-6 if case.dtype is torch.bfloat16 else 1e-5), f"{case}: off by {float(error)}"
    return float(error)


def _compare_tokens(engine: TableEngine, expected: Expected) -> None:
    """Compare what was done at each token: edits that were made, rules that held, vectors that were lost."""
    step, made, num = engine.step_tables, expected.made, len(expected.made)
    items = np.full((num, EDITS, 2), np.nan)
    held = np.zeros(num, np.int64)
    for row, one in enumerate(made):
        for number, item in one.items.items():
            items[row, number] = item
        held[row] = sum(1 << rule for rule in one.held)
    np.testing.assert_array_equal(step.verdicts[:num].cpu().numpy(), held)
    np.testing.assert_array_equal(step.is_lost[:num].cpu().numpy(), [one.is_lost for one in made])
    # activations and doses
    found, is_made = step.items[:num].cpu().numpy(), ~np.isnan(items[:, :, 0])
    np.testing.assert_array_equal(~np.isnan(found[:, :, 0]), is_made)
    allowed = ITEM_TOLERANCE * (np.abs(items) + expected.scales[:, None, None])
    assert (np.abs(found - items) <= allowed)[is_made].all(), "activations and doses"


def _counts(counters: Counters) -> Tensor:
    """Join all that is counted, and no sum of activations or doses."""
    numbers = [one for one in counters if not one.is_floating_point()]
    counts = [column for nth, column in enumerate(counters.sums.unbind(dim=1)) if nth not in SUMMED]
    return torch.cat([one.flatten().double() for one in (*numbers, *counts)])
