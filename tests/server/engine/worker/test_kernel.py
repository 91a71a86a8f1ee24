"""The CUDA kernel, run by Triton's interpreter: what its slow twin does, token by token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from saeclamp_server.engine.worker.edit_stats import EditStats
from saeclamp_server.engine.worker.kernel import GENERATED, PROMPT, UNCOUNTED, UNTOUCHED, FeatureRowTable, ProgramTable
from tests.support.kernel_cases import Case, Edit, Outcome, one_token, random_case, slow_twin
from tests.support.kernel_processes import Process, process
from torch import Tensor

from saeclamp_saes import SAE, Site
from saeclamp_saes.clamping import EditRows, decoder_delta, read_acts

BF16, FP32 = torch.bfloat16, torch.float32


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Process]:
    with process(TRITON_INTERPRET="1") as started:
        yield started


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with process(TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path_factory.mktemp("triton"))) as started:
        yield started


def assert_agrees(case: Case, got: Outcome, expected: Outcome) -> None:
    touched = sorted(expected.touched)
    untouched = [row for row in range(len(case.hidden)) if row not in expected.touched]
    assert same_bits(got.hidden[untouched], case.hidden[untouched])
    length = (expected.hidden - case.hidden.double())[touched].norm(dim=1)
    error = (got.hidden.double() - expected.hidden)[touched]
    if case.hidden.dtype is FP32:
        assert (error.norm(dim=1) <= 1e-5 * length).all()
    else:
        assert (got.hidden[touched] != cut_to_bf16(expected.hidden[touched])).double().mean() < 1e-3
        assert (error.abs() <= 1.01 * 2**-7 * expected.hidden[touched].abs() + 1e-6).all()
    assert torch.equal(got.sums[:, :2], expected.sums[:, :2])
    torch.testing.assert_close(got.sums, expected.sums, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got.peaks.double(), expected.peaks, rtol=1e-5, atol=1e-6)


def cut_to_bf16(x: Tensor) -> Tensor:
    """Triton's interpreter cuts off what a GPU rounds; `test_it_compiles_for_gpus` sees that the instruction rounds."""
    return (x.float().view(torch.int32) & -0x10000).view(FP32).to(BF16)


def same_bits(one: Tensor, other: Tensor) -> bool:
    bits = torch.int16 if one.dtype is BF16 else torch.int32
    return torch.equal(one.view(bits), other.view(bits))


@pytest.mark.parametrize("with_residual", [True, False], ids=["pair", "alone"])
@pytest.mark.parametrize(("dtype", "bank"), [(FP32, FP32), (BF16, FP32), (BF16, BF16)], ids=str)
@pytest.mark.parametrize("d", [576, 1000, 4096])
def test_a_batch_is_edited_as_its_slow_twin_says(
    interpreter: Process, d: int, dtype: torch.dtype, bank: torch.dtype, with_residual: bool
) -> None:
    cases = [random_case(seed, d, dtype, bank, with_residual) for seed in range(2)]
    twins = [slow_twin(case) for case in cases]
    assert sum(len(twin.touched) for twin in twins) >= 4
    assert any(float(twin.sums[:, :2].min()) == 0 < float(twin.sums[:, :2].max()) for twin in twins)
    for case, got, twin in zip(cases, interpreter.run(*cases), twins, strict=True):
        assert_agrees(case, got, twin)


def test_a_program_of_64_entries_stays_exact(interpreter: Process) -> None:
    edits = [Edit(row, "clamp" if row % 2 else "add", 0.5 * row - 16, slot=row % 40, special=True) for row in range(64)]
    case = replace(random_case(0, 4096), programs=[edits], program_of_token=torch.tensor([0, 0] + [UNTOUCHED] * 5))
    (got,) = interpreter.run(case)
    assert_agrees(case, got, slow_twin(case))
    assert (got.hidden - case.hidden)[:2].norm(dim=1).min() > 1000, "a change far longer than the stream"


def test_it_is_what_the_eager_path_computes_and_counts(interpreter: Process) -> None:
    case = replace(random_case(3, 1000, max_entries=64, num_tokens=9), is_sink=torch.zeros(9))
    case = replace(case, programs=[[e._replace(first=0, last=99) for e in edits] for edits in case.programs])
    assert case.residual is not None
    pairs = [
        (token, edit)
        for token, program in enumerate(case.program_of_token.tolist())
        if program != UNTOUCHED
        for edit in case.programs[program]
    ]
    token, slot = (torch.tensor(column) for column in zip(*((t, e.slot) for t, e in pairs), strict=True))
    edits = EditRows(
        token=token,
        feature=torch.tensor([edit.row for _, edit in pairs]),
        moves=torch.tensor([edit.entry().move for _, edit in pairs]),
        mask=torch.ones(len(pairs)),
    )
    here = (Site("resid_post", 0),)
    sae = SAE(here, here, case.W_enc.T, case.b_enc, case.W_dec, torch.zeros(1000), case.threshold)
    x = case.hidden + case.residual
    before = read_acts(x, sae, edits)
    change, pushes = decoder_delta(sae, edits, before, len(x))
    side = case.counts_as[token]
    counts = torch.stack((side == PROMPT, side == GENERATED), dim=1).float()
    measured, dose = counts.sum(dim=1), pushes / x.norm(dim=1)[token]
    edit_stats = EditStats(torch.device("cpu"))
    sums = torch.cat((counts, (before.acts * measured)[:, None], (dose * measured)[:, None]), dim=1)
    edit_stats.add(slot, sums, sums[:, 2:])

    (got,) = interpreter.run(case)
    touched = token.unique()
    error = (got.hidden - (case.hidden + change))[touched].norm(dim=1)
    assert len(pairs) > 100
    assert (error < 1e-5 * change[touched].norm(dim=1)).all()
    for tally, own_sums, own_peaks in zip(edit_stats.read(0, case.num_slots), got.sums, got.peaks, strict=True):
        assert [*vars(tally).values()] == pytest.approx([*own_sums.tolist(), *own_peaks.tolist()], rel=1e-5)


@pytest.mark.parametrize(
    ("op", "value", "expected"),
    [
        ("clamp", 5.0, [5.0, 5.0, 4.0]),
        ("add", 5.0, [8.0, 5.0, 4.0]),
        ("at_least", 1.0, [3.0, 1.0, 4.0]),
        ("at_most", 1.0, [1.0, 0.0, 4.0]),
        ("scale", 2.0, [6.0, 0.0, 4.0]),
        ("ablate", 0.0, [0.0, 0.0, 4.0]),
        ("clamp", -2.0, [-2.0, -2.0, 4.0]),
    ],
)
def test_every_operation_moves_an_activation_as_it_says(
    interpreter: Process, op: str, value: float, expected: list[float]
) -> None:
    (got,) = interpreter.run(one_token([3.0, 0.0, 4.0], [Edit(0, op, value), Edit(1, op, value)]))
    assert got.hidden.tolist() == [expected]


def test_what_does_not_exceed_its_threshold_counts_as_zero(interpreter: Process) -> None:
    case = one_token([3.0, 2.0, -1.0], [Edit(row, "clamp", 5.0) for row in range(3)])
    case = replace(case, threshold=torch.tensor([2.0, 2.0, 0.0]), b_enc=torch.tensor([0.5, 0.0, 0.5]))
    (got,) = interpreter.run(case)
    assert got.hidden.tolist() == [[3.0 + 5.0 - 3.5, 2.0 + 5.0, -1.0 + 5.0]]


def test_all_activations_are_of_the_unedited_vector(interpreter: Process) -> None:
    # the first entry would lift what the second reads from 1 to 11
    case = one_token([1.0, 0.0, 0.0], [Edit(0, "clamp", 11.0), Edit(1, "clamp", 4.0)])
    case = replace(case, W_enc=torch.tensor([[1.0, 0.0, 0.0]] * 3))
    assert interpreter.run(case)[0].hidden.tolist() == [[11.0, 3.0, 0.0]]


def test_the_sum_of_all_changes_is_rounded_once(interpreter: Process) -> None:
    # between 256 and 512, bf16 has every other whole number: each half alone would be lost
    (got,) = interpreter.run(one_token([256.0, 0.0, 0.0], [Edit(0, "add", 0.5)] * 4, BF16))
    assert got.hidden.tolist() == [[258.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("step", "edit", "is_touched"),
    [
        ({"program": UNTOUCHED}, {}, False),
        ({"position": 4}, {"first": 5, "last": 8}, False),
        ({"position": 5}, {"first": 5, "last": 8}, True),
        ({"position": 7}, {"first": 5, "last": 8}, True),
        ({"position": 8}, {"first": 5, "last": 8}, False),
        ({"position": 5}, {"first": 5, "last": 5}, False),
        ({"position": 3 << 32}, {"first": 2}, True),
        ({"is_sink": 1}, {}, False),
        ({"is_sink": 1}, {"special": True}, True),
        ({"is_sink": 1}, {"special": True, "first": 6}, False),
        ({"position": 0, "is_sink": 1}, {}, False),
        ({"position": 0, "is_sink": 1}, {"special": True}, True),
    ],
)
def test_a_token_out_of_scope_keeps_its_bits(
    interpreter: Process, step: dict[str, int], edit: dict[str, int], is_touched: bool
) -> None:
    # -0.0 + 0.0 is 0.0, so not even zero may be added
    case = one_token([-0.0, float("nan"), -1.0], [Edit(2, "add", 3.0, **edit)], BF16, **step)  # type: ignore[arg-type]
    (got,) = interpreter.run(case)
    assert same_bits(got.hidden, case.hidden) is not is_touched
    assert got.sums[0, 0] == is_touched


def test_each_slot_adds_up_its_tokens_and_ranges(interpreter: Process) -> None:
    edits = [Edit(0, "add", 5.0, 1, 0, 2), Edit(0, "add", 5.0, 1, 2, 4), Edit(1, "clamp", 0.0, 0)]
    case = replace(
        one_token([3.0, 4.0], edits),
        hidden=torch.tensor([[3.0, 4.0], [6.0, 8.0], [3.0, 4.0], [3.0, 4.0]]),
        program_of_token=torch.zeros(4),
        position=torch.tensor([1, 2, 3, 4]),
        is_sink=torch.zeros(4),
        counts_as=torch.tensor([PROMPT, GENERATED, UNCOUNTED, GENERATED]),
        num_slots=2,
    )
    (got,) = interpreter.run(case)
    assert got.hidden.tolist() == [[8.0, 0.0], [11.0, 0.0], [8.0, 0.0], [3.0, 0.0]]
    assert got.sums.flatten().tolist() == pytest.approx([1, 2, 4 + 8 + 4, 0.8 * 3, 1, 1, 3 + 6, 1.0 + 0.5])
    assert got.peaks.flatten().tolist() == pytest.approx([8.0, 0.8, 6.0, 1.0])


def test_a_launch_knows_nothing_of_the_one_before(interpreter: Process) -> None:
    full, small = random_case(1, 576, num_tokens=12), random_case(2, 576, num_tokens=2)
    small = replace(small, hidden=full.hidden, residual=full.residual, programs=small.programs[:1])
    small = replace(small, program_of_token=torch.tensor([UNTOUCHED, 0]))
    idle = replace(full, program_of_token=torch.full((12,), UNTOUCHED), programs=[])
    cases = [full, small, idle, full]
    for case, got in zip(cases, interpreter.run(*cases), strict=True):
        assert_agrees(case, got, slow_twin(case))


def test_tokens_may_lie_apart(interpreter: Process) -> None:
    case = random_case(5, 576)
    wide = torch.zeros(len(case.hidden), 2, 576)
    wide[:, 0] = case.hidden
    apart = replace(case, hidden=wide[:, 0])
    assert apart.hidden.stride() == (1152, 1)
    (got,) = interpreter.run(apart)
    assert_agrees(case, got, slow_twin(case))


def test_an_empty_batch_is_nothing_to_do(interpreter: Process) -> None:
    none = torch.zeros(0)
    case = replace(one_token([1.0, 2.0], []), hidden=torch.zeros(0, 2))
    case = replace(case, program_of_token=none, position=none, is_sink=none, counts_as=none)
    assert interpreter.run(case)[0].hidden.shape == (0, 2)


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("d", [576, 8192])
def test_it_compiles_for_gpus(compiler: Process, d: int, capability: int) -> None:
    """The interpreter runs more than the compiler takes, and does not see whether a token fits into registers."""
    case = random_case(0, d, BF16, with_residual=d == 8192)
    compiled = compiler.compile(case, capability)
    assert f".target sm_{capability}" in compiled["ptx"]
    assert compiled["cubin"] > 0
    assert compiled["num_warps"] == {576: 2, 8192: 16}[d]
    assert "ld.global.v4" in compiled["ptx"] or ".v4.b32" in compiled["ptx"]
    assert ".local" not in compiled["ptx"]
    assert "cvt.rn.bf16x2.f32" in compiled["ptx"]


def test_a_table_that_is_full_takes_no_more() -> None:
    table = ProgramTable.allocate(max_programs=2, max_entries=3, device=torch.device("cpu"))
    one = Edit(0, "add", 1.0).entry()
    table.load([[one], [one, one]])
    assert table.entry_start.tolist() == [0, 1, 3]
    table.load([[], [one]])
    assert table.entry_start.tolist() == [0, 0, 1]
    for too_much in ([[one, one], [one, one]], [[one]] * 3):
        with pytest.raises(AssertionError, match="as the table was made for"):
            table.load(too_much)


def test_rows_that_are_brought_in_are_those_of_the_sae() -> None:
    case = random_case(0, 64)
    whole = FeatureRowTable.from_sae(case.W_enc.to(BF16), case.b_enc, case.threshold, case.W_dec.to(BF16))
    bank = FeatureRowTable.allocate(100, 64, BF16, torch.device("cpu"))
    bank.load(7, case.W_enc, case.b_enc, case.threshold, case.W_dec)
    for loaded, own in zip(bank, whole, strict=True):
        assert torch.equal(loaded[7:87], own)
        assert not loaded[:7].any()
    torch.testing.assert_close(whole.dec_norm, case.W_dec.norm(dim=1), rtol=1e-3, atol=0)
