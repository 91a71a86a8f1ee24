"""The engine's op itself, on vectors of our choosing: below 1e-4 of the edit from the full computation in fp64."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.oracles.reference import ReferenceSAE, clamped
from tests.support.checkpoints import make_sae
from tests.support.tiny_saes import ARCHITECTURES, D_IN, D_SAE
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from saeclamp_saes import Site, read_sae
from saeclamp_server.engine.worker.compiled_program import CompiledProgram, LoadedWeights
from saeclamp_server.engine.worker.loaded_sae import LoadedSAE
from saeclamp_server.engine.worker.ops import SCRATCH_BYTES, HookState, register_site, steer
from saeclamp_server.engine.worker.program_tables import ProgramTables
from saeclamp_server.engine.worker.prompt_means import PromptMeanRecorder
from saeclamp_server.engine.worker.step_tables import Batch, StepTables, map_tokens
from saeclamp_server.engine.worker.top_features import TopFeatureFinder
from saeclamp_server.engine.worker.torch_executor import TorchExecutor
from saeclamp_server.steering.program import EditSpec, SteeringProgram
from saeclamp_server.steering.token_ranges import from_positions

CPU = torch.device("cpu")
HERE = Site("resid_post", 0)
TOKENS = [1, 2, 5]
"""Rows of the batch that are touched; it is one request, so they are positions too."""
MOVES = [(0, 3, "clamp", 9.0), (1, 3, "add", -4.0), (1, 40, "clamp", 0.0), (2, 95, "clamp", -2.0)]
"""(which of `TOKENS`, feature, op, value)"""


class Served:
    """SAEs that are served at one site, or read at the first and write at the second; a step of one request of 8 tokens."""

    def __init__(
        self,
        folders: Sequence[Path],
        moves: Sequence[tuple[int, int, str, float]] = MOVES,
        writes_at: int = 0,
        whole_stream: bool = True,
    ) -> None:
        saes = [LoadedSAE(folder.name, read_sae(folder)) for folder in folders]
        loaded = {one.name: LoadedWeights(D_SAE, one.name, number, 0, (writes_at,)) for number, one in enumerate(saes)}
        program = SteeringProgram(
            tuple(
                EditSpec(one.name, feature, op, value, from_positions([TOKENS[at]]))  # type: ignore[arg-type]
                for one in saes
                for at, feature, op, value in moves
            ),
            tuple((one.name, one.name) for one in saes),
        )
        programs = ProgramTables(1, 2, [*loaded.values()], CPU)
        programs.add(CompiledProgram.compile(program, loaded, 8))
        self.step = StepTables(8, torch.zeros(10, dtype=torch.bool), carries=writes_at != 0)
        batch = Batch(torch.zeros(1).int(), torch.tensor([0, 8]), torch.arange(8), torch.full((8,), 5), 8)
        map_tokens(batch, programs, self.step)
        executor = TorchExecutor(programs, self.step, saes)
        self.prompt_means = PromptMeanRecorder(torch.zeros(10, dtype=torch.bool), CPU)
        self.states = [
            HookState(
                HERE, executor, TopFeatureFinder(), self.prompt_means, saes, whole_stream, torch.tensor(torch.inf)
            )
            for _ in range(2)
        ]
        for number, state in enumerate(self.states):
            register_site(number, state)


def stream(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, residual = torch.randn(2, 8, D_IN, generator=generator)
    return hidden.to(dtype), (3 * residual).to(dtype)


@pytest.mark.parametrize("config", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_the_op_adds_what_the_full_computation_in_fp64_adds(tmp_path: Path, config: dict[str, object]) -> None:
    folder = make_sae(tmp_path / "sae", layer=0, d_in=D_IN, d_sae=D_SAE, threshold=0.8, **config)  # type: ignore[arg-type]
    hidden, residual = stream()
    before = hidden.clone()
    if "hooks" in config:  # a transcoder: reads at site 0, writes at site 1
        Served([folder], writes_at=1, whole_stream=False)
        read, _ = stream()
        read = 2 * read + 0.5
        steer(read, None, 0)
        steer(hidden, residual, 1)
        x, y = read[TOKENS].double(), before[TOKENS].double()
        changed = hidden[TOKENS].double()
    else:
        Served([folder])
        steer(hidden, residual, 0)
        x = y = (before[TOKENS] + residual[TOKENS]).double()
        changed = hidden[TOKENS].double() + residual[TOKENS].double()
    expected = clamped(x, y, ReferenceSAE(folder, torch.float64), MOVES)
    delta = (expected - y).norm(dim=1)
    assert (delta > 0.1).all()
    assert ((changed - expected).norm(dim=1) / delta).max() < 1e-4
    untouched = [row for row in range(len(hidden)) if row not in TOKENS]
    assert torch.equal(hidden[untouched], before[untouched])


def test_saes_of_one_site_read_the_same_vectors_and_their_edits_are_rounded_once(tmp_path: Path) -> None:
    folders = [make_sae(tmp_path / name, layer=0, d_in=D_IN, d_sae=D_SAE, seed=seed) for seed, name in enumerate("ab")]
    Served(folders)
    hidden, residual = stream(torch.bfloat16)
    x = hidden[TOKENS].float() + residual[TOKENS].float()
    delta = sum(clamped(x, x, ReferenceSAE(folder), MOVES) - x for folder in folders)
    expected = (hidden[TOKENS].float() + delta).bfloat16()
    steer(hidden, residual, 0)
    # one bf16 unit, where fp32 sums in another order end on the other side of a rounding
    assert (hidden[TOKENS].float() - expected.float()).abs().max() <= 2**-7 * expected.float().abs().max()
    assert (hidden[TOKENS] == expected).float().mean() > 0.99


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [2e12, -3e38, float("inf"), float("nan")])
def test_an_edit_that_leaves_no_sound_vector_is_marked_and_its_neighbours_are_as_without_it(
    tmp_path: Path, value: float, dtype: torch.dtype
) -> None:
    folder = make_sae(tmp_path / "sae", layer=0, d_in=D_IN, d_sae=D_SAE)
    hidden, residual = stream(dtype)
    without = hidden.clone()
    Served([folder], MOVES[1:])
    steer(without, residual, 0)
    served = Served([folder], [(0, 3, "add", value), *MOVES[1:]])
    steer(hidden, residual, 0)
    assert served.step.is_lost.tolist() == [False, True, False, False, False, False, False, False]
    assert hidden[1].isnan().all()
    rest = [row for row in range(8) if row != 1]
    assert torch.equal(hidden[rest], without[rest])


def test_long_vectors_that_numbers_hold_are_left_as_they_are(tmp_path: Path) -> None:
    served = Served([make_sae(tmp_path / "sae", layer=0, d_in=D_IN, d_sae=D_SAE)], [(0, 3, "add", 9e11)])
    hidden, residual = stream()
    steer(hidden, residual, 0)
    assert not served.step.is_lost.any()
    assert hidden[1].norm().item() == pytest.approx(9e11, rel=1e-5)


def test_a_request_records_its_own_rows_of_the_whole_stream_before_any_edit(tmp_path: Path) -> None:
    served = Served([make_sae(tmp_path / "sae", layer=0, d_in=D_IN, d_sae=D_SAE, threshold=0.8)])
    hidden, residual = stream()
    expected = (hidden + residual)[4:6].mean(dim=0).double()
    asked = {"key": "a", "site": str(HERE), "tokens": "all"}
    served.prompt_means.point(asked, [1, 2, 3], row=3, num_tokens=3, first=0)
    steer(hidden, residual, 0)
    ((key, mean),) = served.prompt_means.fetch(["a", "b"])
    assert key == "a"
    assert torch.allclose(torch.frombuffer(bytearray(mean), dtype=torch.float64), expected, atol=1e-6)


def test_room_for_what_steering_takes_is_taken_while_vllm_measures_a_step(tmp_path: Path) -> None:
    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            sizes.extend([made.untyped_storage().nbytes()] if isinstance(made, Tensor) else [])
            return made

    served = Served([make_sae(tmp_path / "sae", layer=0, d_in=D_IN, d_sae=D_SAE)])
    hidden, residual = stream()
    for is_measured in (False, True):
        served.states[0].reserves_scratch, sizes = is_measured, list[int]()
        with Sizes():
            steer(hidden, residual, 0)
        assert (max(sizes) == SCRATCH_BYTES) == is_measured
