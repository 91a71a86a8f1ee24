"""A step's temporary tensors are bounded, however long its prompts and whatever is asked of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from benchmarks import peak_memory
from benchmarks.h200.device import StandIn
from benchmarks.h200.tables import Shape, Tables, clamps, program_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from saeclamp_saes.clamping import PART_BYTES
from saeclamp_server.engine.worker.ops import steer
from saeclamp_server.engine.worker.torch_executor import TorchExecutor


class LargestTensor(TorchDispatchMode):
    """Keeps the bytes of the largest tensor that operations make."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_storage(one) for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        out = func(*args, **(kwargs or {}))
        for one in tree_leaves(out):
            if isinstance(one, Tensor) and _storage(one) not in given:
                self.num_bytes = max(self.num_bytes, one.untyped_storage().nbytes())
        return out


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


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
