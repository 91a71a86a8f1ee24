"""The kernels, in Triton's interpreter and compiled for GPUs: they do what the slow twin does, and fit into registers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tests.support.triton_processes import Process, process

NUM_CASES = 300


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Process]:
    with process(TRITON_INTERPRET="1") as started:
        yield started


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with process(TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path_factory.mktemp("triton"))) as started:
        yield started


def test_any_requests_in_any_steps_are_steered_as_the_slow_twin_says(interpreter: Process) -> None:
    num = interpreter.run(range(NUM_CASES))
    assert num["cases"] == NUM_CASES
    assert num["edited"] > 500
    assert num["held"] > 100
    assert num["lost"] > 5


def test_drafts_are_settled_as_the_slow_twin_says(interpreter: Process) -> None:
    num = interpreter.run(range(1000, 1060), with_drafts=True)
    assert num["edited"] > 100


def test_of_drafts_that_are_accepted_those_behind_the_end_of_an_answer_do_not_stay(interpreter: Process) -> None:
    assert interpreter.find_kept(range(200)) > 50


def test_in_bf16_the_sum_of_all_edits_is_rounded_once(interpreter: Process) -> None:
    num = interpreter.run(range(2000, 2020), dtype=torch.bfloat16)
    assert num["edited"] > 50


def test_a_step_in_which_nobody_comes_or_goes_asks_nothing_of_torch(interpreter: Process) -> None:
    """No copy, no tensor that is made, nothing that could wait for the device."""
    assert interpreter.count_steady(1000) == {
        "operations of steered steps": 0,
        "operations of idle steps": 1,  # the first one of them leaves all tokens without a program
        "map_tokens": 1000,
        "read": 3000,
        "judge": 3000,
        "edit": 3000,
    }


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("width", [64, 576, 2304, 4096, 8192])
def test_they_compile_for_gpus_and_a_token_fits_into_registers(compiler: Process, width: int, capability: int) -> None:
    """The interpreter runs more than the compiler takes, and knows nothing of registers."""
    for name, about in compiler.compile(width, capability, with_residual=width != 576).items():
        assert about["target"].startswith(f"sm_{capability}"), name
        assert about["registers"] <= 128, name
        assert (about["stack"], about["has_local"]) == (0, False), name
        if name in ("read", "edit"):
            assert about["num_warps"] == {64: 1, 576: 2, 2304: 8, 4096: 8, 8192: 16}[width]
            assert about["has_wide_loads"] or width == 64
        if name == "edit":
            assert about["rounds"]


def test_rows_that_do_not_begin_where_16_bytes_do_are_not_asked_for_in_pieces_of_16_bytes(compiler: Process) -> None:
    compiled = compiler.compile(1004, 90, with_residual=True)
    assert not any(compiled[name]["has_wide_loads"] for name in ("read", "edit"))
