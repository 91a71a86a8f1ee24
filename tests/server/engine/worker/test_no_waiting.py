"""No step, admission or end of a request makes the host wait for the device, and no two streams get in each other's way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from tests.support.pretend_gpu import GPU, PretendGPU
from tests.support.random_steps import NUM_FEATURES, NUM_SITES, random_program, random_saes

from saeclamp_saes import Site
from saeclamp_server.engine.worker import judge_kernel, step_end_kernels, triton_kernels
from saeclamp_server.engine.worker.compiled_program import LoadedWeights
from saeclamp_server.engine.worker.device_copies import CopyStream
from saeclamp_server.engine.worker.draft_settlement import DraftSettlement
from saeclamp_server.engine.worker.feature_row_cache import FeatureRowCache
from saeclamp_server.engine.worker.kv_wipe import wipe_blocks
from saeclamp_server.engine.worker.loaded_sae import LoadedSAE
from saeclamp_server.engine.worker.ops import HookState, register_site, steer
from saeclamp_server.engine.worker.pipeline_parallel import StageBoundary
from saeclamp_server.engine.worker.program_tables import ProgramTables
from saeclamp_server.engine.worker.prompt_means import PromptMeanRecorder
from saeclamp_server.engine.worker.request_states import RequestStates
from saeclamp_server.engine.worker.sampled_tokens import AnswerEnd, SampledTokens
from saeclamp_server.engine.worker.steered_steps import KnownRequest, SteeredSteps, SteeringTables, StepInputs
from saeclamp_server.engine.worker.step_tables import StepTables
from saeclamp_server.engine.worker.top_features import TopFeatureFinder
from saeclamp_server.engine.worker.triton_executor import TritonExecutor
from saeclamp_server.steering.program import EXTRA_ARGS_KEY, RECORD_KEY, SteeringProgram

WIDTH, NUM_PROGRAMS, NUM_TOKENS = 16, 4, 64
KERNELS = {
    triton_kernels: ("map_tokens", "read", "edit", "settle", "settle_programs"),
    judge_kernel: ("judge",),
    step_end_kernels: ("find_lost", "find_kept"),
}


@dataclass
class Running:
    """A request that runs."""

    key: str
    known: KnownRequest
    num_computed: int = 0


@dataclass
class Engine:
    """What a worker steers by, on a pretended GPU; one of its SAEs is on the host."""

    gpu: PretendGPU
    with_drafts: bool = False
    with_stages: bool = False
    """True if it is two pipeline stages at once."""
    random: Random = field(default_factory=lambda: Random(0))
    running: dict[str, Running] = field(default_factory=dict)
    preempted: dict[str, Running] = field(default_factory=dict)
    pending: list[Callable[[], Any]] = field(default_factory=list)
    """Step reports that have not been fetched."""

    def __post_init__(self) -> None:
        self.saes = random_saes(self.random, WIDTH, with_top_k=False)
        loaded = [
            LoadedSAE(name, placed.sae, FeatureRowCache(placed.sae, 2, GPU))
            if name == "other"
            else LoadedSAE(name, placed.sae.to(GPU))
            for name, placed in self.saes.items()
        ]
        weights = {
            name: LoadedWeights(NUM_FEATURES, name, number, placed.reads_at, placed.writes_at)
            for number, (name, placed) in enumerate(self.saes.items())
        }
        is_special = torch.zeros(8, dtype=torch.bool)
        programs = ProgramTables(NUM_PROGRAMS, NUM_SITES, [*weights.values()], GPU)
        step = StepTables(NUM_TOKENS, torch.zeros(8, dtype=torch.bool, device=GPU), carries=True)
        caches = {number: one.row_cache for number, one in enumerate(loaded) if one.row_cache is not None}
        executor = TritonExecutor(programs, step, loaded, self.with_drafts)
        requests = RequestStates(weights, [0, 1], programs, caches)
        tables = SteeringTables(
            programs, step, executor, requests, TopFeatureFinder(), PromptMeanRecorder(is_special, GPU)
        )
        self.sites = [
            HookState(
                Site("resid_post", number),
                executor,
                tables.top_features,
                tables.prompt_means,
                [one for one in loaded if one.whole.reads[0].layer == number],
                whole_stream=True,
                sink_norm=programs.sink_norms[number],
            )
            for number in range(NUM_SITES)
        ]
        for number, state in enumerate(self.sites):
            register_site(number, state)
        self.tables = tables
        self.steps = SteeredSteps(tables, self.sites, lambda name: self.running[name].known, GPU)
        self.boundary = StageBoundary(2, loaded, programs, step, tables.top_features)
        self.settlement = DraftSettlement(NUM_PROGRAMS, GPU)
        self.num = 0

    def admit(self, program: SteeringProgram | None = None) -> None:
        """Let a request come."""
        random, self.num = self.random, self.num + 1
        prompt = [random.randrange(8) for _ in range(random.randint(1, 14))]
        program = program or random_program(random, self.saes, len(prompt))
        if random.random() < 0.3 and program.readout is not None:
            readout = replace(program.readout, top_k=2, saes=("jumprelu", "l2"))
            program = replace(
                program, readout=readout, saes=tuple((n, n) for n in sorted(program.sae_names | {"jumprelu", "l2"}))
            )
        extra: dict[str, Any] = {EXTRA_ARGS_KEY: {"key": str(self.num), "program": program.to_json()}}
        if random.random() < 0.2:
            extra[RECORD_KEY] = {"key": str(self.num), "site": "resid_post 1", "tokens": random.choice(("all", "last"))}
        self.running[str(self.num)] = Running(str(self.num), KnownRequest(extra, prompt))

    def step(self, nums: dict[str, int]) -> None:
        """Run a step with so many tokens of each request."""
        num_scheduled = np.array([*nums.values()], np.int32)
        inputs = StepInputs(
            [*nums],
            num_scheduled,
            np.array([self.running[name].num_computed for name in nums], np.int32),
            self._buffer(len(nums) + 1, torch.int32),
            self._buffer(NUM_TOKENS, torch.int64),
            self._buffer(NUM_TOKENS, torch.int32),
        )
        hidden, residual = (self._buffer((int(num_scheduled.sum()), WIDTH), torch.float32) for _ in range(2))
        with self.gpu.stepping():
            self.steps.begin(inputs)
            for number in range(NUM_SITES):
                steer(hidden, residual, number)
            if self.with_stages and self.steps.batch.steered:
                contents = self.steps.batch.contents
                self.boundary.unpack(self.boundary.pack(contents), contents)
            report = self.steps.collect(hidden)
            if self.with_drafts and self.steps.batch.steered:
                self._settle(len(nums))
            self.steps.forget()
        # of two steps the second one has begun when the report of the first one is fetched
        for fetch in self.pending:
            assert isinstance(fetch(), dict)
        self.pending = [report] if report is not None else []
        for name, num in nums.items():
            self.running[name].num_computed += num

    def _settle(self, num_requests: int) -> None:
        sampled = SampledTokens(
            self._buffer(num_requests, torch.int64),
            self._buffer((num_requests, 4), torch.int64),
            self._buffer(num_requests, torch.int32),
            self._buffer(8, torch.int32),
        )
        ends = [AnswerEnd(frozenset({3}), 20)] * num_requests
        self.steps.settle(self.settlement.find_kept(self.steps.batch.program, lambda: ends, sampled))

    def _buffer(self, shape: Any, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=GPU)

    def run(self, num_steps: int) -> None:
        """Run steps in which requests come, are preempted, come again, and go."""
        random = self.random
        for number in range(num_steps):
            while len(self.running) < NUM_PROGRAMS and random.random() < 0.4:
                if self.preempted and random.random() < 0.6:
                    name, request = self.preempted.popitem()
                    self.running[name] = request
                else:
                    self.admit()
            if number % 50 == 0:
                for state in self.sites:
                    state.recorder.is_recording = number % 100 == 0
            names = random.sample([*self.running], len(self.running))
            if names:
                self.step({name: random.choice((1, 1, 3, 9)) for name in names})
            gone = [name for name in self.running if random.random() < 0.15]
            with self.gpu.stepping():
                away = [name for name in gone if random.random() < 0.3]
                self.tables.requests.preempt(away)
                self.tables.requests.end(name for name in gone if name not in away)
            for name in gone:
                request = self.running.pop(name)
                if name in away:
                    request.num_computed = 0
                    self.preempted[name] = request
                elif random.random() < 0.5:
                    assert len(self.tables.requests.collect([name])[name]) == 1
            [*self.tables.prompt_means.fetch(gone)]


@contextmanager
def engine(**options: bool) -> Iterator[Engine]:
    gpu = PretendGPU()
    with ExitStack() as stack:
        for module, names in KERNELS.items():
            for name in names:
                stack.enter_context(patch.object(module, name, gpu.kernel(name)))
        stack.enter_context(gpu.installed())
        started = Engine(gpu, **options)
        gpu.faults, gpu.copied = [], []  # those of the start
        yield started


@pytest.mark.parametrize(("num_steps", "with_drafts"), [(1000, False), (200, True)])
def test_nothing_that_steps_do_waits_for_the_device(num_steps: int, with_drafts: bool) -> None:
    with engine(with_drafts=with_drafts, with_stages=not with_drafts) as one:
        one.run(num_steps)
    assert not set(one.gpu.faults)
    assert not one.tables.requests.failures
    assert one.gpu.copied.count("up") > 5 * num_steps
    assert one.gpu.copied.count("down") > 2 * num_steps
    assert one.gpu.launched.count("settle") == (one.gpu.launched.count("map_tokens") if with_drafts else 0)
    assert one.num > num_steps / 5


def test_a_step_in_which_nobody_comes_or_goes_sends_nothing_up_and_one_tensor_down() -> None:
    with engine() as one:
        program = replace(random_program(Random(1), one.saes, 3), rules=(), readout=None, itemised=False)
        edits = tuple(replace(edit, rule=None, sae="jumprelu") for edit in program.edits[:1])
        for _ in range(3):
            one.admit(replace(program, edits=edits, saes=(("jumprelu", "jumprelu"),)))
        for running in one.running.values():
            running.known.extra_args.pop(RECORD_KEY, None)  # type: ignore[attr-defined]
        one.step(dict.fromkeys(one.running, 5))
        one.gpu.launched, one.gpu.copied = [], []
        for _ in range(100):
            one.step(dict.fromkeys(one.running, 1))
    # `zeros` are this test's own: the buffers of vLLM
    launched = [name for name in one.gpu.launched if name not in ("zeros", "zero")]
    assert launched == ["map_tokens", *["read", "judge", "edit"] * NUM_SITES, "find_lost"] * 100
    assert one.gpu.copied == ["down"] * 100
    assert not one.gpu.faults


def test_blocks_are_wiped_without_waiting() -> None:
    with engine() as one, one.gpu.stepping():
        cache = torch.zeros(8, 2, 4, device=GPU)
        runner = SimpleNamespace(kv_cache_config=SimpleNamespace(num_blocks=8), kv_caches=[cache], device=GPU)
        wipe_blocks(runner, [3, 5])
    assert not one.gpu.faults


def test_the_pretended_gpu_finds_what_waits_and_what_is_not_ordered() -> None:
    gpu = PretendGPU()
    with gpu.installed():
        table = torch.zeros(8, device=GPU)
        copies = CopyStream(GPU)
        fetched = copies.fetch([table])
        table.add_(1)
        assert gpu.faults == ["add on main writes to what stream 1 may be using"]
        gpu.faults = []
        copies.fetch([table])
        copies.join()
        table.add_(1)
        with gpu.stepping():
            fetched.wait()
        table.cpu()
        torch.ones(3).to(GPU, non_blocking=True)
        table[torch.tensor([1])] += 1
        assert gpu.faults == [
            "the host waits for an event",
            "a copy to the host blocks",
            "to from the host is of memory that is not pinned",
            "index by an index of the host copies it",
            "index_put by an index of the host copies it",
        ]
        gpu.faults = []
        with pytest.raises(NotImplementedError):
            table.nonzero()
        assert gpu.faults == ["nonzero waits"]


def test_a_dummy_step_takes_scratch_memory_only_while_vllm_measures() -> None:
    with engine() as one:
        for is_profile in (True, False):
            with one.steps.dummy_step(is_profile):
                assert {state.reserves_scratch for state in one.sites} == {is_profile}
            assert not any(state.reserves_scratch for state in one.sites)
