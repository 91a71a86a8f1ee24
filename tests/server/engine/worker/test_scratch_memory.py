"""A step's temporary tensors are bounded, however long its prompts and whatever is asked of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from benchmarks import peak_memory
from benchmarks.h200.device import StandIn
from benchmarks.h200.tables import Shape, Tables, clamps, program_of
from tests.support.largest_tensor import LargestTensor

from saeclamp_saes.parts import PART_BYTES
from saeclamp_server.engine.worker.ops import steer
from saeclamp_server.engine.worker.torch_executor import TorchExecutor


def _one_feature_each(nth: int) -> Any:
    return program_of(clamps([nth]))


@pytest.mark.parametrize(
    ("prepare", "width"),
    [
        pytest.param(peak_memory.of_programs(_one_feature_each), 4096, id="edits"),
        # there it is the pairs of a token and what is read of it that take memory
        pytest.param(peak_memory.of_programs(peak_memory.compare_256), 64, id="256 activations compared"),
        pytest.param(peak_memory.find_strongest, 4096, id="strongest features"),
        pytest.param(peak_memory.record_mean, 4096, id="mean of the prompt"),
    ],
)
def test_no_temporary_tensor_of_8192_tokens_is_larger_than_64_mib(
    prepare: Callable[[Tables], None], width: int
) -> None:
    shape = Shape(width, 256, peak_memory.SITE)
    tables = Tables(StandIn(), shape, peak_memory.NUM_REQUESTS, peak_memory.NUM_TOKENS, TorchExecutor)
    hidden, residual = torch.randn(2, peak_memory.NUM_TOKENS, width).bfloat16()
    prepare(tables)
    with LargestTensor() as largest:
        steer(hidden, residual, peak_memory.SITE)
    assert 0 < largest.num_bytes <= PART_BYTES
