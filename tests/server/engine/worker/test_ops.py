"""The engine's op itself, on vectors of our choosing: below 1e-4 of the edit from the full computation in fp64."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tests.oracles.reference import ReferenceSAE, clamped
from tests.support.checkpoints import make_sae
from tests.support.tiny_saes import ARCHITECTURES, D_IN, D_SAE
from torch import Tensor

from saeclamp_saes import Site, clamping, read_sae
from saeclamp_saes.clamping import EditRows
from saeclamp_server.engine.worker import ops
from saeclamp_server.engine.worker.edit_stats import EditStats
from saeclamp_server.engine.worker.ops import HookState, LoadedSAE, SAEStep, register_site, steer
from saeclamp_server.engine.worker.prompt_means import PromptMeanRecorder
from saeclamp_server.engine.worker.rule_state import RuleState
from saeclamp_server.engine.worker.step_outputs import StepOutputs, TopFeaturesInputs

HERE = Site("resid_post", 0)
TOKENS = torch.tensor([1, 2, 5])
"""Rows of the batch that are touched."""
MOVES = [(0, 3, "clamp", 9.0), (1, 3, "add", -4.0), (1, 40, "clamp", 0.0), (2, 95, "clamp", -2.0)]
"""(which of `TOKENS`, feature, op, value)"""


def loaded(folder: Path, at: Sequence[int] = (0,), moves: Sequence[tuple[int, int, str, float]] = MOVES) -> LoadedSAE:
    edits = EditRows(
        token=torch.tensor([move[0] for move in moves]),
        feature=torch.tensor([move[1] for move in moves]),
        moves=torch.tensor([clamping.UPDATES[op](value) for _, _, op, value in moves]),
        mask=torch.ones(len(moves)),
    )
    step = SAEStep(dict.fromkeys(at, edits), torch.arange(len(moves)), torch.ones(len(moves), 2))
    return LoadedSAE(folder.name, read_sae(folder), step=step)


def state(reads: list[LoadedSAE], writes: list[LoadedSAE], whole_stream: bool = True) -> HookState:
    cpu = torch.device("cpu")
    step_outputs, writing = StepOutputs(RuleState(cpu)), [(sae, 0) for sae in writes]
    step_outputs.begin(0, 1, {}, num_rows=8)
    return HookState(HERE, EditStats(cpu), step_outputs, reads, writing, whole_stream, tokens=TOKENS)


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
        sae = loaded(folder, at=(0, 1))
        register_site(0, state([sae], [], whole_stream=False))
        register_site(1, state([], [sae], whole_stream=False))
        read, _ = stream()
        read = 2 * read + 0.5
        steer(read, None, 0)
        steer(hidden, residual, 1)
        x, y = read[TOKENS].double(), before[TOKENS].double()
        changed = hidden[TOKENS].double()
    else:
        sae = loaded(folder)
        register_site(0, state([sae], [sae]))
        steer(hidden, residual, 0)
        x = y = (before[TOKENS] + residual[TOKENS]).double()
        changed = hidden[TOKENS].double() + residual[TOKENS].double()
    expected = clamped(x, y, ReferenceSAE(folder, torch.float64), MOVES)
    delta = (expected - y).norm(dim=1)
    assert (delta > 0.1).all()
    assert ((changed - expected).norm(dim=1) / delta).max() < 1e-4
    untouched = [row for row in range(len(hidden)) if row not in TOKENS.tolist()]
    assert torch.equal(hidden[untouched], before[untouched])


def test_saes_of_one_site_read_the_same_vectors_and_their_edits_are_rounded_once(tmp_path: Path) -> None:
    folders = [make_sae(tmp_path / name, layer=0, d_in=D_IN, d_sae=D_SAE, seed=seed) for seed, name in enumerate("ab")]
    saes = [loaded(folder) for folder in folders]
    register_site(0, state(saes, saes))
    hidden, residual = stream(torch.bfloat16)
    x = hidden[TOKENS].float() + residual[TOKENS].float()
    delta = sum(clamped(x, x, ReferenceSAE(folder), MOVES) - x for folder in folders)
    expected = (hidden[TOKENS].float() + delta).bfloat16()
    steer(hidden, residual, 0)
    # one bf16 unit, where fp32 sums in another order end on the other side of a rounding
    assert (hidden[TOKENS].float() - expected.float()).abs().max() <= 2**-7 * expected.float().abs().max()
    assert (hidden[TOKENS] == expected).float().mean() > 0.99


def test_a_site_without_touched_tokens_is_left_alone(tmp_path: Path) -> None:
    sae = loaded(make_sae(tmp_path / "sae", layer=0, d_in=D_IN, d_sae=D_SAE))
    idle = state([sae], [sae])
    idle.tokens = None
    register_site(0, idle)
    hidden, residual = stream()
    before = hidden.clone()
    steer(hidden, residual, 0)
    assert torch.equal(hidden, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [2e12, -3e38, float("inf"), float("nan")])
def test_an_edit_that_leaves_no_sound_vector_is_marked_and_its_neighbours_are_as_without_it(
    tmp_path: Path, value: float, dtype: torch.dtype
) -> None:
    folder = make_sae(tmp_path / "sae", layer=0, d_in=D_IN, d_sae=D_SAE)
    hidden, residual = stream(dtype)
    without = hidden.clone()
    sae = loaded(folder, moves=MOVES[1:])
    register_site(0, state([sae], [sae]))
    steer(without, residual, 0)
    sae = loaded(folder, moves=[(0, 3, "add", value), *MOVES[1:]])
    lost = state([sae], [sae])
    register_site(0, lost)
    steer(hidden, residual, 0)
    assert lost.step_outputs.lost.tolist() == [False, True, False, False, False, False, False, False]
    assert hidden[1].isnan().all()
    rest = [row for row in range(8) if row != 1]
    assert torch.equal(hidden[rest], without[rest])


def test_long_vectors_that_numbers_hold_are_left_as_they_are(tmp_path: Path) -> None:
    sae = loaded(make_sae(tmp_path / "sae", layer=0, d_in=D_IN, d_sae=D_SAE), moves=[(0, 3, "add", 9e11)])
    long = state([sae], [sae])
    register_site(0, long)
    hidden, residual = stream()
    steer(hidden, residual, 0)
    assert not long.step_outputs.lost.any()
    assert hidden[1].norm().item() == pytest.approx(9e11, rel=1e-5)


def test_strongest_features_are_found_in_parts_as_at_once(tmp_path: Path) -> None:
    sae = read_sae(make_sae(tmp_path / "sae", layer=0, d_in=D_IN, d_sae=D_SAE))
    x = torch.randn(50, D_IN, generator=torch.Generator().manual_seed(0))
    top = TopFeaturesInputs(torch.arange(50).flip(0), torch.arange(50) % 7 > 0, 5)
    whole, in_parts = ops.strongest_features(sae, x, top), ops.strongest_features(sae, x, top, 4 * 3 * D_SAE * 4)
    assert torch.equal(whole.features, in_parts.features)
    assert torch.allclose(whole.acts, in_parts.acts, atol=1e-5, equal_nan=True)
    assert whole.acts.isnan().all(dim=1).tolist() == [n % 7 == 0 for n in range(50)]


def test_a_request_records_its_own_rows_of_the_whole_stream_before_any_edit(tmp_path: Path) -> None:
    sae = loaded(make_sae(tmp_path / "sae", layer=0, d_in=D_IN, d_sae=D_SAE, threshold=0.8))
    hidden, residual = stream()
    expected = (hidden + residual)[4:6].mean(dim=0).double()
    site = state([sae], [sae])
    site.prompt_means = PromptMeanRecorder(torch.zeros(10, dtype=torch.bool), torch.device("cpu"))
    site.prompt_means.point({"key": "a", "site": str(HERE), "tokens": "all"}, [1, 2, 3], row=3, num_tokens=3, first=0)
    register_site(0, site)
    steer(hidden, residual, 0)
    ((key, mean),) = site.prompt_means.fetch(["a", "b"])
    assert key == "a"
    assert torch.allclose(torch.frombuffer(bytearray(mean), dtype=torch.float64), expected, atol=1e-6)
