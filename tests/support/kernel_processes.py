"""
The kernel where there is no GPU: run by Triton's interpreter, and compiled for GPUs without running it.

Each needs a process of its own. Triton decides when it is first imported whether it interprets, and by then other tests
have imported it through vLLM.
"""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from tests.support.kernel_cases import Case, Outcome

CPU = torch.device("cpu")
MAX_TOKENS, MAX_PROGRAMS, MAX_ENTRIES = 16, 4, 256
Ran = list[Outcome]


class Process:
    """Runs functions of this file in a fresh process with an environment of its own."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def run(self, *cases: Case) -> Ran:
        """Run the cases one after the other on the same buffers."""
        # as bytes: torch would hand tensors over in shared memory, which the two would then both hold
        outcomes: Ran = pickle.loads(self._pool.submit(_run, pickle.dumps(cases)).result())
        return outcomes

    def compile(self, case: Case, capability: int) -> dict[str, Any]:
        """Compile for NVIDIA GPUs of a capability, as a launch would, and tell about the result."""
        return self._pool.submit(_compile, pickle.dumps(case), capability).result()


@contextmanager
def process(**environment: str) -> Iterator[Process]:
    """Start one, and stop it in the end."""
    with (
        patch.dict("os.environ", environment),
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool,
    ):
        yield Process(pool)


def _run(cases: bytes) -> bytes:
    import triton

    assert triton.knobs.runtime.interpret, "set before this process imported triton"
    assert "vllm" not in sys.modules, "the kernel stands on its own"
    launch = _Launch()
    return pickle.dumps([launch(case) for case in pickle.loads(cases)])


class _Launch:
    """Calls the kernel with buffers that stay, as a captured graph would."""

    def __init__(self) -> None:
        from saeclamp_server.engine.worker import kernel

        self.kernel = kernel
        self.step = kernel.StepBuffers.allocate(MAX_TOKENS, CPU)
        self.programs = kernel.ProgramTable.allocate(MAX_PROGRAMS, MAX_ENTRIES, CPU)

    def __call__(self, case: Case) -> Outcome:
        self.step.load(case.program_of_token, case.position, case.is_sink, case.counts_as)
        self.programs.load([[edit.entry() for edit in edits] for edits in case.programs])
        bank = self.kernel.FeatureRowTable.from_sae(case.W_enc, case.b_enc, case.threshold, case.W_dec)
        tallies = self.kernel.EditStatBuffers.allocate(case.num_slots, CPU)
        hidden = copy.deepcopy(case.hidden)  # with its strides
        self.kernel.clamp_residual(hidden, case.residual, self.step, self.programs, bank, tallies)
        return Outcome(hidden, tallies.sums, tallies.peaks)


def _compile(case: bytes, capability: int) -> dict[str, Any]:
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    driver.set_active(
        SimpleNamespace(
            get_current_device=lambda: capability,  # a device each, since Triton remembers a device's target
            get_current_stream=lambda device: 0,
            get_current_target=lambda: GPUTarget("cuda", capability, 32),
        )
    )
    launch = _Launch()
    warm_up = _WarmUp(launch.kernel._clamp_token)
    with patch.object(launch.kernel, "_clamp_token", warm_up):
        launch(pickle.loads(case))
    (compiled,) = warm_up.compiled
    return {"ptx": compiled.asm["ptx"], "cubin": len(compiled.asm["cubin"]), "num_warps": compiled.metadata.num_warps}


class _WarmUp:
    """In the place of a kernel: a launch only compiles."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.compiled: list[Any] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *args, **options: self.compiled.append(self.kernel.warmup(*args, grid=grid, **options))
