"""
The kernels where there is no GPU: run by Triton's interpreter, and compiled for GPUs without running them.

Each needs a process of its own. Triton decides when it is first imported whether it interprets, and by then other tests
have imported it through vLLM.
"""

from __future__ import annotations

import multiprocessing
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

NUM_STEPS = 2


class Process:
    """Runs functions of this file in a fresh process with an environment of its own."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def run(self, seeds: Sequence[int], **options: Any) -> dict[str, int]:
        """Run random schedules by the kernels, and count what was compared. Raises AssertionError where they differ."""
        return self._pool.submit(_run, [*seeds], options).result()

    def find_kept(self, seeds: Sequence[int]) -> int:
        """Settle random drafts by the kernel; returns how many answers ended before the last token sampled at once."""
        return self._pool.submit(_find_kept, [*seeds]).result()

    def count_steady(self, num_steps: int) -> dict[str, Any]:
        """Count what steps ask of torch and of Triton when no request comes or goes."""
        return self._pool.submit(_count_steady, num_steps).result()

    def compile(self, width: int, capability: int, with_residual: bool) -> dict[str, dict[str, Any]]:
        """Compile for NVIDIA GPUs of a capability, as launches would, and tell about the results, by kernel."""
        return self._pool.submit(_compile, width, capability, with_residual).result()


@contextmanager
def process(**environment: str) -> Iterator[Process]:
    """Start one, and stop it in the end."""
    with (
        patch.dict("os.environ", environment),
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool,
    ):
        yield Process(pool)


def _run(seeds: list[int], options: dict[str, Any]) -> dict[str, int]:
    import triton
    from tests.support.random_steps import run_schedule
    from tests.support.triton_interpreter import patch_the_language_once_a_launch

    from saeclamp_server.engine.worker.triton_executor import TritonExecutor

    assert triton.knobs.runtime.interpret, "set before this process imported triton"
    assert "vllm" not in sys.modules, "the kernels stand on their own"
    patch_the_language_once_a_launch()
    num = dict.fromkeys(("cases", "edited", "held", "lost"), 0)
    for seed in seeds:
        width = Random(seed).choice((13, 24, 64, 72))
        num["cases"] += 1
        for tokens, sites, expected, after, made in run_schedule(
            seed, width, NUM_STEPS, with_top_k=False, max_tokens=6, executor=TritonExecutor, **options
        ):
            for (hidden, _), wanted, found in zip(sites, expected, after, strict=True):
                for row, token in enumerate(tokens):
                    check_row(seed, hidden[row], wanted[row], found[row], token.request is not None)
            num["edited"] += sum(bool(one.items) for one in made)
            num["held"] += sum(bool(one.held) for one in made)
            num["lost"] += sum(one.is_lost for one in made)
    return num


def _find_kept(seeds: list[int]) -> int:
    from saeclamp_server.engine.worker.draft_settlement import DraftSettlement
    from saeclamp_server.engine.worker.program_layout import FOREVER
    from saeclamp_server.engine.worker.sampled_tokens import AnswerEnd, SampledTokens

    num_cut = 0
    settlement = DraftSettlement(8, torch.device("cpu"))
    for seed in seeds:
        random = Random(seed)
        num_requests, num_tokens = random.randint(1, 6), random.choice((1, 4))
        program = torch.tensor(random.sample([-1, *range(8)], num_requests), dtype=torch.int32)
        row = torch.tensor(random.sample(range(10), num_requests))
        tokens = torch.randint(0, 6, (num_requests, num_tokens), generator=torch.Generator().manual_seed(seed))
        num = torch.tensor([random.randint(0, num_tokens) for _ in range(num_requests)], dtype=torch.int32)
        # of all tokens the last one has not been computed
        num_computed = torch.arange(20, 30, dtype=torch.int32)
        len_before = [int(num_computed[at]) + 1 - n for at, n in zip(row.tolist(), num.tolist(), strict=True)]
        ends = [
            AnswerEnd(frozenset(random.sample(range(6), random.choice((0, 1, 3)))), n + random.randint(1, 6))
            for n in len_before
        ]
        expected = torch.full((8,), FOREVER)
        for nth, number in enumerate(program.tolist()):
            own = tokens[nth, : num[nth]].tolist()
            num_kept = ends[nth].num_kept(own, len_before[nth])
            if number >= 0:
                expected[number] = len_before[nth] + num_kept - 1
                num_cut += num_kept < len(own)
        for _ in range(2):  # the second time, the batch is known
            found = settlement.find_kept(program, lambda ends=ends: ends, SampledTokens(row, tokens, num, num_computed))
            assert torch.equal(found, expected), f"seed {seed}"
    return num_cut


def check_row(seed: int, before: torch.Tensor, wanted: torch.Tensor, found: torch.Tensor, is_steered: bool) -> None:
    """Compare a token's vector with the slow twin's; untouched ones keep their bits."""
    if not is_steered or torch.equal(wanted, before.double()):
        assert torch.equal(found, before), f"seed {seed}: what nobody touches keeps its bits"
        return
    if wanted.isnan().any():
        assert found.isnan().all(), f"seed {seed}: lost"
        return
    change = (wanted - before.double()).norm()
    # Triton's interpreter cuts off bits of bf16 that a GPU rounds
    tolerance = 2**-6 * wanted.norm() if found.dtype is torch.bfloat16 else 1e-5 * change + 1e-5 * wanted.norm()
    assert (found.double() - wanted).norm() <= tolerance, f"seed {seed}"


def _count_steady(num_steps: int) -> dict[str, Any]:
    """Run steps by the kernels that launch and do nothing, and count what else is asked of torch."""
    from tests.support.random_steps import Request, TableEngine, random_program, random_saes, random_sites
    from torch.utils._python_dispatch import TorchDispatchMode

    from saeclamp_server.engine.worker import judge_kernel, triton_kernels
    from saeclamp_server.engine.worker.site_vectors import SiteVectors
    from saeclamp_server.engine.worker.step_tables import Batch
    from saeclamp_server.engine.worker.triton_executor import TritonExecutor

    class Asked(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.operations = list[str]()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.operations.append(str(func))
            return func(*args, **(kwargs or {}))

    random = Random(0)
    saes = random_saes(random, 24, with_top_k=False)
    engine = TableEngine(saes, 4, 32, executor=TritonExecutor)
    requests = [Request(str(n), random_program(random, saes, 9), 9, [5] * 64) for n in range(3)]
    for request in requests:
        engine.admit(request)
    sites = [
        SiteVectors(hidden, residual, whole_stream=True, norm_eps=None)
        for hidden, residual in random_sites(random, 3, 24, torch.float32)
    ]
    batch = Batch(
        torch.tensor([request.number for request in requests], dtype=torch.int32),
        torch.arange(4).int(),
        torch.full((3,), 20),
        torch.full((3,), 5).int(),
        3,
    )
    engine.executor.clear()
    launches = {name: _Launches() for name in ("map_tokens", "read", "edit")}
    judged = _Launches()
    with patch.multiple(triton_kernels, **launches), patch.object(judge_kernel, "judge", judged), Asked() as asked:
        for _ in range(num_steps):
            engine.executor.map_tokens(batch)
            for number, vectors in enumerate(sites):
                engine.executor.judge(number, vectors)
                engine.executor.edit(number, vectors)
        steered = len(asked.operations)
        for _ in range(num_steps):
            engine.executor.clear()
    return {
        "operations of steered steps": steered,
        "operations of idle steps": len(asked.operations) - steered,
        **{name: one.num for name, one in [*launches.items(), ("judge", judged)]},
    }


class _Launches:
    """In the place of a kernel: counts launches."""

    def __init__(self) -> None:
        self.num = 0

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*args: Any, **options: Any) -> None:
            self.num += 1

        return launch


def _compile(width: int, capability: int, with_residual: bool) -> dict[str, dict[str, Any]]:
    from tests.support.random_steps import Request, Step, TableEngine, random_program, random_saes
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    from saeclamp_server.engine.worker import judge_kernel, step_end_kernels, triton_kernels
    from saeclamp_server.engine.worker.draft_settlement import DraftSettlement
    from saeclamp_server.engine.worker.sampled_tokens import AnswerEnd, SampledTokens
    from saeclamp_server.engine.worker.site_vectors import SiteVectors
    from saeclamp_server.engine.worker.triton_executor import TritonExecutor

    driver.set_active(
        SimpleNamespace(
            get_current_device=lambda: capability,  # a device each, since Triton remembers a device's target
            get_current_stream=lambda device: 0,
            get_current_target=lambda: GPUTarget("cuda", capability, 32),
        )
    )
    random = Random(0)
    saes = random_saes(random, width, with_top_k=False)
    warm_ups = {name: _WarmUp(getattr(triton_kernels, name)) for name in ("map_tokens", "read", "edit", "settle")}
    judge = {"judge": _WarmUp(judge_kernel.judge)}
    at_the_end = {name: _WarmUp(getattr(step_end_kernels, name)) for name in ("find_lost", "find_kept")}
    with (
        patch.multiple(triton_kernels, **warm_ups),
        patch.multiple(judge_kernel, **judge),
        patch.multiple(step_end_kernels, **at_the_end),
    ):
        engine = TableEngine(saes, 4, 8, executor=TritonExecutor)
        engine.admit(Request("a", random_program(random, saes, 9), 9, [5] * 64))
        hidden, residual = torch.zeros(2, 8, width, dtype=torch.bfloat16)
        vectors = SiteVectors(hidden, residual if with_residual else None, whole_stream=True, norm_eps=None)
        request = Request("plain", None, 9, [5] * 64)
        engine.map(Step([(request, 8)]))
        engine.executor.judge(0, vectors)
        engine.executor.edit(0, vectors)
        with patch.object(triton_kernels, "settle_programs", _WarmUp(triton_kernels.settle_programs)):
            engine.executor.settle(torch.zeros(4, dtype=torch.int64))
        engine.executor.find_lost(hidden)
        row = torch.zeros(8, dtype=torch.int64)
        sampled = SampledTokens(row, torch.zeros(8, 4, dtype=torch.int64), row.int(), row.int())
        ends = [AnswerEnd(frozenset({2, 5, 7}), 20)] * 8
        DraftSettlement(4, torch.device("cpu")).find_kept(row.int(), lambda: ends, sampled)
    return {name: warm_up.about() for name, warm_up in (warm_ups | judge | at_the_end).items()}


class _WarmUp:
    """In the place of a kernel: a launch only compiles."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.compiled: list[Any] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *args, **options: self.compiled.append(self.kernel.warmup(*args, grid=grid, **options))

    def about(self) -> dict[str, Any]:
        (compiled,) = self.compiled
        ptx = compiled.asm["ptx"]
        return {
            **_resources(compiled.asm["cubin"]),
            "target": re.findall(r"\.target (\w+)", ptx)[0],
            "num_warps": compiled.metadata.num_warps,
            "has_local": ".local" in ptx,
            "has_wide_loads": bool(re.search(r"ld\.global[^ ]*\.v4", ptx)),
            "rounds": "cvt.rn.bf16x2.f32" in ptx or "cvt.rn.bf16.f32" in ptx,
        }


def _resources(cubin: bytes) -> dict[str, int]:
    """Read the registers and the stack of a thread, by the tool that Triton brings."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    (registers, stack) = re.findall(r"REG:(\d+) STACK:(\d+)", said)[0]
    return {"registers": int(registers), "stack": int(stack)}
