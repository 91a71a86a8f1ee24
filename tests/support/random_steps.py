"""Random engines, requests and schedules, for the slow twin and what is held against it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import torch
from tests.oracles.steered_steps import Made, Placed, Running, SlowEngine, Token
from torch import Tensor

from saeclamp_saes import SAE, Site
from saeclamp_saes.sae import InputNorm, TopK
from saeclamp_server.engine.worker.compiled_program import CompiledProgram, LoadedWeights
from saeclamp_server.engine.worker.loaded_sae import LoadedSAE
from saeclamp_server.engine.worker.program_layout import EDITS, FOREVER
from saeclamp_server.engine.worker.program_tables import Counters, ProgramTables
from saeclamp_server.engine.worker.site_vectors import SiteVectors
from saeclamp_server.engine.worker.step_tables import Batch, StepTables
from saeclamp_server.engine.worker.torch_executor import TorchExecutor
from saeclamp_server.steering.program import ComparisonSpec, EditSpec, Form, ReadoutSpec, RuleSpec, SteeringProgram
from saeclamp_server.steering.token_ranges import ALL, GENERATED, PROMPT, TokenRanges, from_positions

CPU = torch.device("cpu")
NUM_SITES, NUM_FEATURES = 3, 12
SPECIAL_IDS = (0, 1)
VALUES = {"clamp": 8.0, "add": 6.0, "at_least": 5.0, "at_most": 2.0, "scale": 3.0}
"""How far an operation's value goes in both directions."""


SINK_SCALE = 100.0
OVERS: tuple[tuple[Any, int], ...] = (("token", 0),) * 5 + (("max", 0), ("mean", 0), ("mean", 1), ("mean", 3))


def random_sae(random: Random, width: int, reads: int, writes: tuple[int, ...], **options: Any) -> SAE:
    """Make an SAE between sites that have numbers; of those that are no bank, some as they are kept of a bf16 checkpoint."""
    generator = torch.Generator().manual_seed(random.getrandbits(32))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    threshold = torch.rand(NUM_FEATURES, generator=generator) * (torch.rand(NUM_FEATURES, generator=generator) < 0.5)
    is_bank = options.pop("is_bank", False)
    sae = SAE(
        reads=(Site("resid_post", reads),),
        writes=tuple(Site("resid_post", site) for site in writes),
        W_enc=(2 * normal(NUM_FEATURES, width) / width**0.5).T,
        b_enc=0 * normal(NUM_FEATURES) if is_bank else normal(NUM_FEATURES),
        W_dec=normal(NUM_FEATURES, width * len(writes)) / 4,
        b_dec=torch.zeros(width * len(writes)),
        threshold=torch.full((NUM_FEATURES,), -math.inf) if is_bank else threshold,
        **options,
    )
    is_stored_in_bf16 = not is_bank and float(torch.rand(1, generator=generator)) < 0.4
    return stored_in_bf16(sae).narrowed() if is_stored_in_bf16 else sae


def stored_in_bf16(sae: SAE) -> SAE:
    """Round an SAE's matrices to what bf16 can hold, in the type that they have."""
    W_enc, W_dec = (matrix.bfloat16().to(matrix.dtype) for matrix in (sae.W_enc, sae.W_dec))
    return replace(sae, W_enc=W_enc, W_dec=W_dec)


def random_saes(random: Random, width: int, with_top_k: bool = True) -> dict[str, Placed]:
    """Make SAEs of every kind at three sites."""
    kinds: dict[str, tuple[int, tuple[int, ...], dict[str, Any]]] = {
        "jumprelu": (0, (0,), {}),
        "other": (0, (0,), {}),
        "layer norm": (1, (1,), {"input_norm": InputNorm(center=True, scale="std", eps=1e-5)}),
        "l2": (2, (2,), {"input_norm": InputNorm(scale="l2")}),
        "vectors": (1, (1,), {"is_bank": True}),
        "transcoder": (0, (1,), {}),
        "cross layer": (1, (1, 2), {}),
    }
    if with_top_k:
        kinds |= {"topk": (2, (2,), {"top_k": TopK(4)}), "abstopk": (1, (1,), {"top_k": TopK(4, signed=True)})}
    return {
        name: Placed(random_sae(random, width, reads, writes, **options), reads, writes)
        for name, (reads, writes, options) in kinds.items()
    }


def random_program(random: Random, saes: dict[str, Placed], prompt_len: int) -> SteeringProgram:
    """Make a program of edits and rules, and maybe a readout; a rule's edits come at its last site or behind it."""
    rules = tuple(_random_rule(random, saes, prompt_len) for _ in range(random.choice((0, 0, 1, 3))))
    edits = []
    for _ in range(random.randint(0 if rules else 1, 8)):
        rule = random.choice((None, *range(len(rules))))
        name = random.choice([*saes])
        if rule is not None:
            last = max(saes[comparison.sae].reads_at for comparison in rules[rule].comparisons)
            name = random.choice([name for name, placed in saes.items() if min(placed.writes_at) >= last])
        op = random.choice([*VALUES])
        value = VALUES[op] * (2 * random.random() - 1)
        if op != "scale" and random.random() < 0.02:
            value = 1e13  # which no vector can bear
        scope, special = _random_scope(random, prompt_len), random.random() < 0.3
        edits.append(EditSpec(name, random.randrange(NUM_FEATURES), op, value, scope, special, rule))  # type: ignore[arg-type]
    readout = None
    if random.random() < 0.4:
        features = tuple(_random_feature(random, saes) for _ in range(random.randint(1, 4)))
        readout = ReadoutSpec(features, tokens=_random_scope(random, prompt_len), special=random.random() < 0.3)
    program = SteeringProgram(tuple(edits), (), rules, readout, itemised=random.random() < 0.3)
    return SteeringProgram(
        program.edits, tuple((name, name) for name in sorted(program.sae_names)), rules, readout, program.itemised
    )


def _random_feature(random: Random, saes: dict[str, Placed]) -> tuple[str, int]:
    return random.choice([*saes]), random.randrange(NUM_FEATURES)


def _random_rule(random: Random, saes: dict[str, Placed], prompt_len: int) -> RuleSpec:
    comparisons = tuple(
        ComparisonSpec(
            *_random_feature(random, saes),
            random.uniform(-0.5, 2.0),
            random.random() < 0.6,
            *random.choice(OVERS),
        )
        for _ in range(random.choice((1, 1, 2, 5)))
    )
    form = random_form(random, [*range(len(comparisons))])
    scope = _random_scope(random, prompt_len)
    return RuleSpec(comparisons, form, scope, random.random() < 0.3, random.random() < 0.4)


def random_form(random: Random, leaves: list[int]) -> Form:
    if len(leaves) == 1 and random.random() < 0.6:
        return leaves[0]
    if random.random() < 0.25:
        return "not", (random_form(random, leaves),)
    cut = random.randint(1, len(leaves))
    parts = [part for part in (leaves[:cut], leaves[cut:]) if part]
    return random.choice(("all", "any")), tuple(random_form(random, part) for part in parts)


def _random_scope(random: Random, prompt_len: int) -> TokenRanges:
    kind = random.randrange(6)
    if kind < 3:
        return (ALL, PROMPT, GENERATED)[kind]
    if kind == 3:
        return ((0, random.randint(1, 12)),)
    if kind == 4:
        return ((random.randint(0, 12), None),)
    return from_positions(random.sample(range(40), random.randint(1, 15)))


@dataclass
class Request:
    """A request that runs."""

    name: str
    program: SteeringProgram | None
    prompt_len: int
    ids: list[int]
    number: int = -1
    """Of its program in the tables."""
    compiled: CompiledProgram | None = None
    computed: int = 0
    counters: Counters | None = None
    """While it is preempted."""


@dataclass
class Step:
    """A step of a schedule."""

    requests: list[tuple[Request, int]]
    """Requests of the batch, each with the number of its tokens."""
    kept_to: dict[str, int] = field(default_factory=dict)
    """Position behind the last token that stays, of requests whose last tokens were drafts."""

    def tokens(self) -> list[Token]:
        return [
            Token(request.name if request.program else None, position, request.ids[position])
            for request, num in self.requests
            for position in range(request.computed, request.computed + num)
        ]


class Schedule:
    """Requests that come, are computed in parts, preempted, and go."""

    def __init__(self, random: Random, saes: dict[str, Placed], max_tokens: int, with_drafts: bool) -> None:
        self._random, self._saes, self._max_tokens, self._with_drafts = random, saes, max_tokens, with_drafts
        self.running: list[Request] = []
        self._num = 0

    def admit(self) -> Request:
        """Let a request come; every fifth is not steered."""
        random, self._num = self._random, self._num + 1
        prompt_len = random.randint(1, 14)
        program = random_program(random, self._saes, prompt_len) if random.random() < 0.8 else None
        request = Request(str(self._num), program, prompt_len, [random.randrange(8) for _ in range(64)])
        self.running.append(request)
        return request

    def step(self) -> Step:
        """Choose the tokens of a step, in an order of their own."""
        random, left, chosen = self._random, self._max_tokens, []
        step = Step(chosen)
        for request in random.sample(self.running, len(self.running)):
            num = min(left, random.choice((1, 1, 1, 3, 8)), len(request.ids) - request.computed)
            if num > 0:
                chosen.append((request, num))
                left -= num
                if self._with_drafts and num > 1 and request.computed >= request.prompt_len:
                    step.kept_to[request.name] = request.computed + random.randint(1, num)
        return step


class TableEngine:
    """The tables, and an executor that runs them."""

    def __init__(
        self, saes: dict[str, Placed], num_programs: int, num_tokens: int, is_deferred: bool = False, **executors: Any
    ) -> None:
        self.loaded = {
            name: LoadedWeights(NUM_FEATURES, name, number, placed.reads_at, placed.writes_at)
            for number, (name, placed) in enumerate(saes.items())
        }
        sink_norms = executors.pop("sink_norms", None)
        is_special = torch.zeros(8, dtype=torch.bool)
        is_special[list(SPECIAL_IDS)] = True
        self._device = executors.get("device", CPU)
        self.programs = ProgramTables(num_programs, NUM_SITES, [*self.loaded.values()], self._device)
        if sink_norms is not None:
            self.programs.sink_norms.copy_(torch.tensor(sink_norms))
        self.step_tables = StepTables(num_tokens, is_special.to(self._device), carries=True)
        own = [LoadedSAE(name, placed.sae.to(self._device)) for name, placed in saes.items()]
        make = executors.get("executor", TorchExecutor)
        self.executor = make(self.programs, self.step_tables, own, is_deferred)

    def admit(self, request: Request) -> None:
        """Write a request's program into the tables."""
        if request.program is None:
            return
        request.compiled = CompiledProgram.compile(request.program, self.loaded, request.prompt_len)
        request.number = self.programs.add(request.compiled)
        if request.counters is not None:
            self.programs.restore(request.number, request.counters)

    def remove(self, request: Request) -> Counters | None:
        """Take it out again."""
        if request.program is None:
            return None
        return Counters._make(table[0] for table in self.programs.remove([request.number]))

    def map(self, step: Step) -> None:
        """Begin a step."""
        tokens = step.tokens()
        edges = torch.tensor([0, *(num for _, num in step.requests)]).cumsum(0).int()
        batch = Batch(
            torch.tensor([request.number for request, _ in step.requests], dtype=torch.int32, device=self._device),
            edges.to(self._device),
            torch.tensor([token.position for token in tokens], device=self._device),
            torch.tensor([token.token_id for token in tokens], dtype=torch.int32, device=self._device),
            len(tokens),
        )
        self.executor.map_tokens(batch)

    def run(self, step: Step, sites: list[tuple[Tensor, Tensor | None]]) -> list[Tensor]:
        """Run a step, and return `hidden` of each site afterwards."""
        self.map(step)
        after = []
        for site, (hidden, residual) in enumerate(sites):
            vectors = SiteVectors(hidden.clone(), residual, whole_stream=True, norm_eps=None)
            self.executor.judge(site, vectors)
            self.executor.edit(site, vectors)
            after.append(vectors.hidden)
        return after

    def settle(self, step: Step) -> None:
        """Keep what the step says that stays."""
        kept_to = torch.full((self.programs.num_programs,), FOREVER, dtype=torch.int64, device=self._device)
        for request, _ in step.requests:
            if request.name in step.kept_to and request.number >= 0:
                kept_to[request.number] = step.kept_to[request.name]
        self.executor.settle(kept_to)


def random_sites(random: Random, num_tokens: int, width: int, dtype: torch.dtype) -> list[tuple[Tensor, Tensor | None]]:
    """Make the vectors of all sites for a step; the first site has no residual."""
    generator = torch.Generator().manual_seed(random.getrandbits(32))
    made: list[tuple[Tensor, Tensor | None]] = []
    for site in range(NUM_SITES):
        hidden, residual = torch.randn(2, num_tokens, width, generator=generator)
        # some are sinks
        hidden = torch.where(torch.rand(num_tokens, 1, generator=generator) < 0.1, SINK_SCALE * hidden, hidden)
        made.append((hidden.to(dtype), None if site == 0 else (2 * residual).to(dtype)))
    return made


def sink_norms(width: int) -> list[float]:
    """Return ten times the usual norm of each site's vectors, as `random_sites` makes them."""
    return [10 * width**0.5 * (1 if site == 0 else 5**0.5) for site in range(NUM_SITES)]


def check_counters(found: Counters, expected: Running) -> None:
    """Compare the counters of a request."""
    for number in range(len(expected.program.edits)):
        sums = expected.sums.get(number, [0.0] * 6)
        assert found.sums[number, :2].tolist() == sums[:2]
        assert found.sums[number, 4:].tolist() == sums[4:]
        torch.testing.assert_close(found.sums[number].tolist(), sums, rtol=1e-4, atol=1e-4)
        peaks = expected.peaks.get(number, [-math.inf] * 2)
        torch.testing.assert_close(found.peaks[number].tolist(), peaks, rtol=1e-4, atol=1e-4)
    for rule, spec in enumerate(expected.program.rules):
        assert int(found.first_held[rule]) == expected.first_held.get(rule, FOREVER)
        assert int(found.num_held[rule]) == expected.num_held.get(rule, 0)
        assert int(found.num_unjudged[rule]) == expected.num_unjudged.get(rule, 0)
        if rule in expected.first_held:
            acts = found.first_acts[rule, : len(spec.comparisons)].tolist()
            torch.testing.assert_close(acts, expected.first_acts[rule], rtol=1e-4, atol=1e-4)


def check_step(engine: TableEngine, step: Step, made: list[Made], is_settled: bool) -> None:
    """Compare what the step tables have with what the slow twin says of each token."""
    tables, row = engine.step_tables, 0
    for request, num in step.requests:
        for _ in range(num):
            if request.program is not None:
                _check_token(request, tables, row, made[row], is_settled)
            row += 1


def _check_token(request: Request, tables: StepTables, row: int, made: Made, is_settled: bool) -> None:
    assert request.program is not None
    assert request.compiled is not None
    assert bool(tables.is_lost[row]) == made.is_lost
    if request.compiled.readout is not None and request.program.readout is not None:
        names = request.program.readout.features
        found = tables.acts[row, torch.from_numpy(request.compiled.readout.columns)].tolist()
        for key, act in zip(names, found, strict=True):
            # at this token the readout may not look, while a rule does
            assert math.isnan(act) or act == pytest_approx(made.acts[key])
    if not is_settled:
        held = {rule for rule in range(32) if int(tables.verdicts[row]) >> rule & 1}
        assert held == made.held
        assert {rule for rule in range(32) if int(tables.unjudged[row]) >> rule & 1} == made.unjudged
        left_out = {number for number in range(EDITS) if float(tables.items[row, number, 1]) == 0.0}
        assert left_out - made.items.keys() == made.left_out
        items = {
            number: tuple(tables.items[row, number].tolist())
            for number in range(EDITS)
            if not math.isnan(float(tables.items[row, number, 0]))
        }
        assert items.keys() == made.items.keys()
        for number, item in made.items.items():
            assert items[number] == pytest_approx(item)


def pytest_approx(value: Any) -> Any:
    import pytest

    return pytest.approx(value, rel=1e-4, abs=1e-4)


def run_schedule(seed: int, width: int, num_steps: int, with_drafts: bool = False, **options: Any) -> Iterator[Any]:
    """Run a random schedule on the slow twin and on tables, compare after each step, and yield what was compared."""
    random = Random(seed)
    dtype = options.pop("dtype", torch.float32)
    saes = random_saes(random, width, options.pop("with_top_k", True))
    max_tokens, num_programs = options.pop("max_tokens", 24), 4
    engine = TableEngine(saes, num_programs, max_tokens, with_drafts, sink_norms=sink_norms(width), **options)
    slow, schedule = SlowEngine(saes, SPECIAL_IDS, sink_norms(width)), Schedule(random, saes, max_tokens, with_drafts)
    preempted: list[Request] = []
    for _ in range(num_steps):
        while len(schedule.running) < num_programs and random.random() < 0.6:
            if preempted and random.random() < 0.7:
                request = preempted.pop()
                schedule.running.append(request)
            else:
                request = schedule.admit()
                if request.program is not None:
                    slow.requests[request.name] = Running(request.program, request.prompt_len)
            engine.admit(request)
        step = schedule.step()
        if not step.requests:
            continue
        tokens = step.tokens()
        sites = random_sites(random, len(tokens), width, dtype)
        steered = {name: end for name, end in step.kept_to.items() if name in slow.requests}
        expected, made = slow.step(tokens, sites, steered if with_drafts else None)
        after = engine.run(step, sites)
        check_step(engine, step, made, is_settled=False)
        if with_drafts:
            engine.settle(step)
        yield tokens, sites, expected, after, made
        for request, num in step.requests:
            request.computed = step.kept_to.get(request.name, request.computed + num)
        for request in [*schedule.running]:
            fate = random.random()
            if fate < 0.1 or request.computed >= 40:
                schedule.running.remove(request)
                counters = engine.remove(request)
                if counters is not None:
                    check_counters(counters, slow.requests.pop(request.name))
            elif fate < 0.2:
                schedule.running.remove(request)
                request.counters, request.computed = engine.remove(request), 0
                preempted.append(request)
