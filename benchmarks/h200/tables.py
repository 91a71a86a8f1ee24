"""The worker's tables and steps without a worker: SAEs and vectors that are made here, programs, and the real op."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from benchmarks.h200.device import Card
from torch import Tensor

from saeclamp_saes import SAE, Site
from saeclamp_saes.sae import TopK
from saeclamp_server.engine.worker.compiled_program import CompiledProgram, LoadedWeights
from saeclamp_server.engine.worker.executor import Executor
from saeclamp_server.engine.worker.loaded_sae import LoadedSAE
from saeclamp_server.engine.worker.ops import HookState, register_site, steer_op
from saeclamp_server.engine.worker.program_tables import ProgramTables
from saeclamp_server.engine.worker.prompt_means import PromptMeanRecorder
from saeclamp_server.engine.worker.request_states import RequestStates
from saeclamp_server.engine.worker.steered_steps import KnownRequest, SteeredSteps, SteeringTables, StepInputs
from saeclamp_server.engine.worker.step_tables import Batch, StepTables
from saeclamp_server.engine.worker.top_features import TopFeatureFinder
from saeclamp_server.engine.worker.vector_bank import make_vector_bank, set_row
from saeclamp_server.steering.program import (
    EXTRA_ARGS_KEY,
    ComparisonSpec,
    EditSpec,
    ReadoutSpec,
    RuleSpec,
    SteeringProgram,
)
from saeclamp_server.steering.token_ranges import ALL

VOCABULARY = 128_256
ORDINARY = 5
"""Id of all tokens."""
SAE_NAME = "sae"


class Shape(NamedTuple):
    """Sizes of what is served."""

    width: int
    num_features: int
    sae_at: int
    """Site of the SAE."""
    banks_at: Sequence[int] = ()
    """Sites of vector banks; together with that of the SAE, those that are hooked at most."""
    top_k: TopK | None = None
    """Of the SAE."""


class Tables:
    """Tables of one worker, and the op's state at each site."""

    def __init__(
        self,
        device: Card,
        shape: Shape,
        num_programs: int,
        num_tokens: int,
        make_executor: Callable[..., Executor] | None = None,
    ) -> None:
        """
        num_tokens:    of a batch, at most
        make_executor: that of GPUs where it is None
        """
        generator = torch.Generator(device.torch).manual_seed(0)
        sae = random_sae(shape, device.torch, generator)
        banks = {f"vectors {site}": self._bank(shape, site, device.torch, generator) for site in shape.banks_at}
        served = [LoadedSAE(SAE_NAME, sae), *banks.values()]
        at = [shape.sae_at, *shape.banks_at]
        self.loaded = {
            one.name: LoadedWeights(one.sae.d_sae, "", number, site, (site,))
            for number, (one, site) in enumerate(zip(served, at, strict=True))
        }
        num_sites = max(at) + 1
        programs = ProgramTables(num_programs, num_sites, [*self.loaded.values()], device.torch)
        is_special = torch.zeros(VOCABULARY, dtype=torch.bool)
        step = StepTables(num_tokens, is_special.to(device.torch), carries=False)
        self.steering = SteeringTables(
            programs,
            step,
            (make_executor or _triton_executor)(programs, step, served),
            RequestStates(self.loaded, [], programs),
            TopFeatureFinder(),
            PromptMeanRecorder(is_special, device.torch),
        )
        self.states = [self._state(site, [served[0]] if site == shape.sae_at else []) for site in range(num_sites)]
        for number, state in enumerate(self.states):
            register_site(number, state)
        self._device = device

    def _bank(self, shape: Shape, site: int, device: torch.device, generator: torch.Generator) -> LoadedSAE:
        bank = make_vector_bank(f"vectors {site}", Site("resid_post", site), shape.width, 2, device)
        set_row(bank.sae, 0, torch.randn(shape.width, generator=generator, device=device))
        return bank

    def _state(self, site: int, reads: Sequence[LoadedSAE]) -> HookState:
        steering = self.steering
        return HookState(
            Site("resid_post", site),
            steering.executor,
            steering.top_features,
            steering.prompt_means,
            reads,
            whole_stream=True,
            sink_norm=steering.programs.sink_norms[site],
        )

    def add(self, program: SteeringProgram, prompt_len: int = 1) -> int:
        """Write a program into the tables, and return its number."""
        return self.steering.programs.add(CompiledProgram.compile(program, self.loaded, prompt_len))

    def batch(self, numbers: Sequence[int], num_tokens: int, first_position: int) -> Batch:
        """
        Lay out the batch of a step in which each request has as many tokens.

        numbers: of the requests' programs; -1 for none
        """
        return Batch(
            torch.tensor(numbers, dtype=torch.int32).to(self._device.torch),
            (torch.arange(len(numbers) + 1, dtype=torch.int32) * num_tokens).to(self._device.torch),
            (torch.arange(num_tokens) + first_position).repeat(len(numbers)).to(self._device.torch),
            torch.full((len(numbers) * num_tokens,), ORDINARY, dtype=torch.int32).to(self._device.torch),
            len(numbers) * num_tokens,
        )


def _triton_executor(*args: Any) -> Executor:
    from saeclamp_server.engine.worker.triton_executor import TritonExecutor

    return TritonExecutor(*args)


class Requests:
    """The requests of a batch, one token each, and the worker's steps."""

    def __init__(self, device: Card, tables: Tables, num_most: int) -> None:
        """`num_most` requests run at once, at most."""
        self._known: dict[str, KnownRequest] = {}
        self._states, self._started = tables.steering.requests, 0
        self.steps = SteeredSteps(tables.steering, tables.states, self._known.__getitem__, device.torch)
        self._layout = tables.batch([-1] * num_most, 1, first_position=1)
        self.positions = self._layout.positions
        """(num_most,), on the device. Counted up by whoever runs steps, as vLLM does."""
        self.ids: list[str] = []

    def come(self, program: SteeringProgram | None) -> str:
        """Let a request into the batch."""
        self._started += 1
        name = str(self._started)
        payload = {"key": name, "program": program.to_json()} if program else None
        self._known[name] = KnownRequest({EXTRA_ARGS_KEY: payload} if payload else {}, [ORDINARY])
        self.ids = [*self.ids, name]
        return name

    def go(self, name: str) -> None:
        """Let a request end, and drop its report."""
        self._states.end([name])
        self._states.collect([name])
        del self._known[name]
        self.ids = [one for one in self.ids if one != name]

    def inputs(self, position: int) -> StepInputs:
        """Make the inputs of a step, as a runner's adapter does; `position` is that of all tokens."""
        num, layout = len(self.ids), self._layout
        return StepInputs(
            self.ids,
            np.ones(num, np.int32),
            np.full(num, position, np.int32),
            layout.first_row[: num + 1],
            layout.positions,
            layout.input_ids,
        )


def random_sae(shape: Shape, device: torch.device, generator: torch.Generator) -> SAE:
    """Make an SAE at a site whose features are active at about half of all tokens."""
    num, width = shape.num_features, shape.width
    encoder, decoder = (torch.randn(num, width, generator=generator, device=device).div_(width**0.5) for _ in range(2))
    site = Site("resid_post", shape.sae_at)
    zeros = torch.zeros(num, device=device)
    return SAE((site,), (site,), encoder.T, zeros, decoder, torch.zeros(width, device=device), zeros, top_k=shape.top_k)


def clamps(features: Sequence[int], rule: int | None = None) -> tuple[EditSpec, ...]:
    """Clamp features at all tokens; the residual stream of random weights is some times longer than this moves it."""
    return tuple(EditSpec(SAE_NAME, feature, "clamp", 2.0, ALL, special=True, rule=rule) for feature in features)


def program_of(edits: tuple[EditSpec, ...], **parts: Any) -> SteeringProgram:
    """Make a program of edits, rules and a readout."""
    program = SteeringProgram(edits, (), **parts)
    return SteeringProgram(edits, tuple((name, "") for name in sorted(program.sae_names)), **parts)


def kinds(shape: Shape, nth: int, num: int) -> Mapping[str, SteeringProgram]:
    """
    Make the programs that a request has in each of the settings, by name.

    nth, num: of the requests; with programs of their own, no two share a feature
    """

    def own(count: int) -> list[int]:
        return [(nth + n * num) % shape.num_features for n in range(count)]

    def rule(**options: Any) -> RuleSpec:
        return RuleSpec((ComparisonSpec(SAE_NAME, own(2)[1], 0.0, above=True),), 0, ALL, special=True, **options)

    vectors = tuple(EditSpec(f"vectors {site}", 0, "add", 0.01, ALL, special=True) for site in shape.banks_at)
    return {
        "1 feature, the same for all": program_of(clamps([0])),
        "1 feature each": program_of(clamps(own(1))),
        "16 features each": program_of(clamps(own(16))),
        "64 features each": program_of(clamps(own(64))),
        "a rule each": program_of(clamps(own(1), rule=0), rules=(rule(),)),
        "3 features read": program_of(
            (), readout=ReadoutSpec(tuple((SAE_NAME, one) for one in own(3)), tokens=ALL, special=True)
        ),
        "a rule that would abort": program_of(
            (), rules=(RuleSpec((ComparisonSpec(SAE_NAME, own(1)[0], 1e6, above=True),), 0, ALL, aborts=True),)
        ),
        "a vector at each site": program_of(vectors),
    }


def steer(hidden: Tensor, residual: Tensor, site: int) -> None:
    """Call the op as a hook does."""
    steer_op(hidden, residual, site)
