"""
The CUDA kernel on a GPU: is it right, does it replay from a CUDA graph, and what does it cost?

    python benchmarks/kernel.py [--write]

Needs a GPU, torch and triton, and nothing else of this project but the kernel's own file. It checks random batches against a
dense computation in fp64, captures a launch in a CUDA graph and replays it with other contents in the same buffers, and
times launches from a graph. Anything that is wrong ends it with an AssertionError before a table is written.

The floor is the time to move the bytes that a launch must touch at the bandwidth of a large copy on the same GPU: `hidden`
in and out, `residual` in, and each row of the bank once. Warm: launches follow one another. Cold: before each, a buffer
larger than the L2 cache is filled, as a decode step does with the model's weights. The share of a decode step is of an 8B
model's, whose 16 GB of weights in bf16 are read once at the same bandwidth; real steps take longer. Edits are at one layer.

Without a GPU, `TRITON_INTERPRET=1 python benchmarks/kernel.py` checks two small batches in Triton's interpreter.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
import triton
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent / "server"))
from saeclamp_server.engine.worker.kernel import (
    END,
    GENERATED,
    UNCOUNTED,
    UNTOUCHED,
    EditStatBuffers,
    Entry,
    FeatureRowTable,
    ProgramTable,
    StepBuffers,
    clamp_residual,
)

RESULTS = Path(__file__).parent / "results"
INF = float("inf")
BF16, FP32 = torch.bfloat16, torch.float32
WEIGHT_BYTES, D_TIMED = 2 * 8.03e9, 4096
"""Of an 8B model, and its width."""
LARGER_THAN_L2 = 512 << 20
LAUNCHES, REPLAYS = 20, 15

Batch = list[list[Entry]]


@dataclass(frozen=True)
class Buffers:
    """Everything a launch is given, at fixed addresses."""

    hidden: Tensor
    """(max_tokens, d)"""
    residual: Tensor | None
    step: StepBuffers
    programs: ProgramTable
    bank: FeatureRowTable
    tallies: EditStatBuffers

    @classmethod
    def allocate(
        cls, device: torch.device, d: int, tokens: int, rows: int, entries: int, dtype: torch.dtype, bank: torch.dtype
    ) -> Buffers:
        """Random vectors and rows, nothing touched."""
        hidden, residual = torch.randn(2, tokens, d, device=device)
        features = FeatureRowTable.from_sae(
            (2 * torch.randn(rows, d, device=device) / d**0.5).to(bank),
            torch.randn(rows, device=device),
            torch.rand(rows, device=device) * (torch.rand(rows, device=device) < 0.5),
            (torch.randn(rows, d, device=device) / 4).to(bank),
        )
        return cls(
            hidden.to(dtype),
            (2 * residual).to(dtype),
            StepBuffers.allocate(tokens, device),
            ProgramTable.allocate(max(entries, 1), max(entries, 1), device),
            features,
            EditStatBuffers.allocate(max(entries, 1), device),
        )

    def launch(self) -> None:
        clamp_residual(self.hidden, self.residual, self.step, self.programs, self.bank, self.tallies)


def random_programs(num_programs: int, num_entries: int, num_rows: int, seed: int) -> Batch:
    """As many entries in each, each with a slot of its own."""
    rng = random.Random(seed)
    return [
        [_random_entry(rng, num_rows, program * num_entries + number) for number in range(num_entries)]
        for program in range(num_programs)
    ]


def _random_entry(rng: random.Random, num_rows: int, slot: int) -> Entry:
    value = rng.uniform(-8, 8)
    shifts = [(value, -1.0, -INF, INF), (value, 0.0, -INF, INF), (0.0, value / 3 - 1, -INF, INF)]
    moves = [*shifts, (0.0, 0.0, value, INF), (0.0, 0.0, -INF, value), (0.0, -1.0, -INF, INF)]
    first, last = rng.choice([(0, END), (0, 20), (20, END), (10, 30)])
    return Entry(rng.randrange(num_rows), rng.choice(moves), slot, first, last, rng.random() < 0.5)


def load_random(buffers: Buffers, programs: Batch, num_tokens: int) -> None:
    """Fill in a step of `num_tokens` random tokens, and clear the tallies."""
    device = buffers.hidden.device
    buffers.programs.load(programs)
    buffers.step.load(
        torch.randint(UNTOUCHED, len(programs), (num_tokens,), device=device),
        torch.randint(0, 40, (num_tokens,), device=device),
        torch.rand(num_tokens, device=device) < 0.3,
        torch.randint(UNCOUNTED, GENERATED + 1, (num_tokens,), device=device),
    )
    for tensor in buffers.tallies:
        tensor.zero_()


@dataclass(frozen=True)
class Expected:
    """Of one launch, in fp64."""

    change: Tensor
    """(max_tokens, d)"""
    touched: Tensor
    """(max_tokens,) bool"""
    at_a_jump: Tensor
    """(max_tokens,) bool: the last bit of an activation decides whether it is zero"""
    sums: Tensor
    """(num_slots, 4), as in Tallies; nothing of tokens at a jump may be compared"""


def expected(buffers: Buffers, programs: Batch) -> Expected:
    """Encode all rows of the bank, move what is to be moved, and decode: two matrix products."""
    bank, step = buffers.bank, buffers.step
    x = buffers.hidden.float() + (0 if buffers.residual is None else buffers.residual.float())
    pre = x.double() @ bank.W_enc.double().T + bank.b_enc.double()
    acts = torch.where(pre > bank.threshold, pre, 0.0)
    is_near = ((pre - bank.threshold).abs() < 1e-4) & (bank.threshold > 0)
    moved, touched = torch.zeros_like(acts), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    at_a_jump, sums = touched.clone(), torch.zeros_like(buffers.tallies.sums)
    length, dec_norm = x.double().norm(dim=1), bank.W_dec.double().norm(dim=1)
    for program, entries in enumerate(programs):
        of_program = step.program_of_token == program
        for row, (offset, gain, low, high), slot, first, last, special in entries:
            in_scope = of_program & (step.position >= first) & (step.position < last)
            here = in_scope if special else in_scope & (step.is_sink == 0)
            act = acts[:, row]
            move = (offset + gain * act).clamp(low - act, high - act) * here
            moved[:, row] += move
            touched |= here
            at_a_jump |= here & is_near[:, row]
            counted = here & (step.counts_as != UNCOUNTED)
            sides = [(counted & (step.counts_as == side)).double().sum() for side in (1, 2)]
            dose = move.abs() * dec_norm[row] / length
            sums[slot] += torch.stack([*sides, (act * counted).sum(), (dose * counted).sum()])
    return Expected(moved @ bank.W_dec.double(), touched, at_a_jump, sums)


def check(buffers: Buffers, before: Tensor, want: Expected) -> float:
    """
    Assert that a launch did what was expected, and return the largest error of a token over the lengths of what was added.

    In bf16, the share of elements that are not the nearest to what was expected: what lies between two may go either way.

    before: (max_tokens, d), `hidden` before the launch
    """
    hidden, compared = buffers.hidden, want.touched & ~want.at_a_jump
    bits = torch.int16 if hidden.dtype is BF16 else torch.int32
    assert torch.equal(hidden[~want.touched].view(bits), before[~want.touched].view(bits)), "others keep their bits"
    if not want.at_a_jump.any():
        assert torch.equal(buffers.tallies.sums[:, :2], want.sums[:, :2]), "what was counted"
        torch.testing.assert_close(buffers.tallies.sums, want.sums, rtol=1e-4, atol=1e-4)
    if not compared.any():
        return 0.0
    after = (before.double() + want.change)[compared]
    if hidden.dtype is BF16:
        share = float((hidden[compared] != after.float().to(BF16)).double().mean())
        assert share < 1e-3, f"rounded once: {share} of the elements are not the nearest"
        return share
    length = want.change[compared].norm(dim=1) + before[compared].double().norm(dim=1)
    error = float(((hidden[compared].double() - after).norm(dim=1) / length).max())
    assert error < 1e-5, f"error of {error}"
    return error


def parity(device: torch.device) -> Iterator[str]:
    """Check random batches, and yield a row of the table for each type."""
    on_gpu = device.type == "cuda"
    widths = (576, 1000, 2304, 4096, 8192) if on_gpu else (576,)
    shapes = ((1, 64), (7, 1), (64, 16), (500, 5), (4096, 64)) if on_gpu else ((3, 9),)
    # the interpreter cuts off where a GPU rounds
    types = ((FP32, FP32), (BF16, FP32), (BF16, BF16)) if on_gpu else ((FP32, FP32), (FP32, BF16))
    for dtype, bank in types:
        worst, num_tokens, seed = 0.0, 0, 0
        for d in widths:
            for tokens, entries in shapes:
                seed += 1
                torch.manual_seed(seed)
                programs = random_programs(min(tokens, 8), entries, num_rows=256, seed=seed)
                buffers = Buffers.allocate(device, d, tokens + 3, 256, 8 * entries, dtype, bank)
                buffers = buffers if seed % 3 else Buffers(**{**vars(buffers), "residual": None})
                worst = max(worst, _one_launch(buffers, programs, tokens, buffers.launch))
                num_tokens += tokens
        yield f"| {_name(dtype)} | {_name(bank)} | {len(widths) * len(shapes)} | {num_tokens} | {worst:.1e} |"


def _one_launch(buffers: Buffers, programs: Batch, num_tokens: int, launch: Callable[[], None]) -> float:
    load_random(buffers, programs, num_tokens)
    want, before = expected(buffers, programs), buffers.hidden.clone()
    launch()
    return check(buffers, before, want)


def replayed(device: torch.device) -> str:
    """Capture one launch and replay it with other programs, tokens, rows and vectors, and with none."""
    torch.manual_seed(0)
    buffers = Buffers.allocate(device, 4096, 256, 512, 1024, BF16, FP32)
    graph = captured(buffers.launch, 1)
    contents = [(256, 64), (100, 16), (0, 1), (1, 64), (256, 1)]
    for number, (tokens, entries) in enumerate(contents):
        buffers.hidden.copy_(torch.randn_like(buffers.hidden, dtype=FP32))
        buffers.bank.load(number, *(tensor[-9:].clone() for tensor in buffers.bank[:4]))
        _one_launch(buffers, random_programs(16, entries, 512, number), tokens, graph.replay)
    return f"One captured launch, replayed with {len(contents)} different contents of its buffers: each as expected."


def captured(launch: Callable[[], None], times: int) -> torch.cuda.CUDAGraph:
    """Capture so many launches, after one that lets Triton compile."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        launch()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            launch()
    return graph


def seconds(launch: Callable[[], None]) -> float:
    """Median time of a launch among others in a graph."""
    graph, times = captured(launch, LAUNCHES), []
    for _ in range(3 + REPLAYS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / LAUNCHES)
    return statistics.median(times[3:])


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds(lambda: target.copy_(source))


def costs(device: torch.device, bandwidth: float) -> Iterator[str]:
    """Time decode steps, in which every token has features of its own, and a prefill of 16 requests."""
    flush = torch.empty(LARGER_THAN_L2, dtype=torch.uint8, device=device)
    flushing = seconds(flush.zero_)
    for tokens, num_programs in ((1, 1), (16, 16), (64, 64), (256, 256), (4096, 16)):
        for entries in (0, 1, 16):
            for bank in (BF16, FP32) if entries else (BF16,):
                buffers = _timed(device, tokens, num_programs, entries, bank)
                warm = seconds(buffers.launch)
                cold = seconds(lambda buffers=buffers: (flush.zero_(), buffers.launch())) - flushing
                floor = _bytes_touched(buffers, tokens, num_programs * entries) / bandwidth
                share = f"{cold / (WEIGHT_BYTES / bandwidth):.2%}" if tokens <= 256 else ""
                times = " | ".join(f"{1e6 * time:.1f}" for time in (floor, warm, cold))
                what = f"{entries} x {_name(bank)}" if entries else "idle"
                ratio = f"{cold / floor:.1f}" if entries else ""
                yield f"| {tokens} | {what} | {times} | {ratio} | {share} |"


def _timed(device: torch.device, tokens: int, num_programs: int, entries: int, bank: torch.dtype) -> Buffers:
    rows = max(1, num_programs * entries)
    buffers = Buffers.allocate(device, D_TIMED, tokens, rows, rows, BF16, bank)
    if entries:
        # moves by nothing, so that a thousand launches leave the vectors finite
        still = (0.0, 0.0, -INF, INF)
        slots = [range(program * entries, (program + 1) * entries) for program in range(num_programs)]
        buffers.programs.load([[Entry(slot, still, slot) for slot in own] for own in slots])
        program = torch.arange(tokens) * num_programs // tokens
        buffers.step.load(program, torch.ones(tokens), torch.zeros(tokens), torch.full((tokens,), GENERATED))
    return buffers


def _bytes_touched(buffers: Buffers, tokens: int, rows: int) -> int:
    if rows == 0:
        return tokens * buffers.step.program_of_token.element_size()
    vectors = 3 * tokens * D_TIMED * buffers.hidden.element_size()
    return vectors + 2 * rows * D_TIMED * buffers.bank.W_enc.element_size()


def _name(dtype: torch.dtype) -> str:
    return {BF16: "bf16", FP32: "fp32"}[dtype]


def report(device: torch.device) -> Iterator[str]:
    """Yield the lines of the page."""
    is_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if is_gpu else "Triton's interpreter"
    yield f"# The CUDA kernel, {date.today()}\n"
    yield f"`python benchmarks/kernel.py`: {name}, torch {torch.__version__}, triton {triton.__version__}.\n"
    yield "Random batches against a dense computation in fp64. The error is relative to the lengths of the edit and of what"
    yield "it is added to; in bf16, the share of elements that are not the nearest.\n"
    yield "| stream | rows | batches | tokens | largest error |\n|---|---|--:|--:|--:|"
    yield from parity(device)
    if is_gpu:
        bandwidth = copy_bandwidth(device)
        yield f"\n{replayed(device)}\n"
        yield f"What it costs at d = {D_TIMED} with a residual, from a CUDA graph, in microseconds. A copy moves"
        yield f"{bandwidth / 1e9:.0f} GB/s, so a decode step of an 8B model in bf16 takes at least"
        yield f"{1e3 * WEIGHT_BYTES / bandwidth:.2f} ms. Each token of a decode batch has features of its own; the 4096 are"
        yield "a prefill of 16 requests. Cold: with the L2 cache overwritten before each launch.\n"
        yield "| tokens | entries per token | floor | warm | cold | cold / floor | share of a decode step |"
        yield "|--:|---|--:|--:|--:|--:|--:|"
        yield from costs(device, bandwidth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"also write {RESULTS.name}/DATE-kernel.md")
    args = parser.parse_args()
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        sys.exit("There is no GPU here. TRITON_INTERPRET=1 checks two small batches without one.")
    lines = []
    for line in report(torch.device("cuda" if torch.cuda.is_available() else "cpu")):
        print(line, flush=True)
        lines.append(line)
    if args.write:
        (RESULTS / f"{date.today()}-kernel.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
