"""
The device that parts run on: a CUDA card, or a stand-in on the CPU that calls at once what a graph would replay.

The stand-in is there to run every line of the parts where no card is. Its times mean nothing.
"""

from __future__ import annotations

import re
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

Call = Callable[[], Any]
WARM_UPS = 2


class Card:
    """The CUDA card."""

    is_dry = False

    def __init__(self) -> None:
        self.torch = torch.device("cuda", 0)
        torch.cuda.set_device(self.torch)

    def wait(self) -> None:
        """Wait until all that was launched has run."""
        torch.cuda.synchronize()

    def capture(self, call: Call) -> Call:
        """Capture what a call launches in a graph, and return what replays it. Nothing must be steered meanwhile."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    def milliseconds(self, call: Call, num: int) -> float:
        """Time so many calls, one behind the other: of one of them."""
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(num):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / num

    @contextmanager
    def waits(self) -> Iterator[Counter[str]]:
        """Count where the host waits for the device, by file and line: where `set_sync_debug_mode("error")` would raise."""
        found = Counter[str]()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
        found.update(f"{one.filename}:{one.lineno}" for one in said if "called a synchronizing" in str(one.message))

    @contextmanager
    def peak(self) -> Iterator[list[int]]:
        """Measure the memory that torch allocates at most, above what is allocated before: a list of one number, bytes."""
        self.wait()
        before, found = torch.cuda.memory_allocated(), [0]
        torch.cuda.reset_peak_memory_stats()
        yield found
        self.wait()
        found[0] = torch.cuda.max_memory_allocated() - before

    def runtime_calls(self, call: Call) -> dict[str, int]:
        """Count the calls of CUDA's runtime that a call makes, by name."""
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
            call()
        # the profiler itself waits in the end
        self.wait()
        return _runtime_calls(profiled)

    def event(self, times: bool = False) -> Any:
        """Record an event."""
        event = torch.cuda.Event(enable_timing=times)
        event.record()
        return event


class StandIn(Card):
    """The CPU in the place of a card."""

    is_dry = True

    def __init__(self) -> None:
        self.torch = torch.device("cpu")

    def wait(self) -> None:
        """Nothing is under way."""

    def capture(self, call: Call) -> Call:
        """Return the call itself, run once as before a capture."""
        call()
        return call

    def milliseconds(self, call: Call, num: int) -> float:
        """Time the calls by the host's clock."""
        begin = time.perf_counter()
        for _ in range(num):
            call()
        return (time.perf_counter() - begin) / num * 1e3

    @contextmanager
    def waits(self) -> Iterator[Counter[str]]:
        """Find nothing: a CPU is not waited for."""
        yield Counter[str]()

    @contextmanager
    def peak(self) -> Iterator[list[int]]:
        """Measure nothing."""
        yield [0]

    def runtime_calls(self, call: Call) -> dict[str, int]:
        """Count none."""
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            call()
        return _runtime_calls(profiled)

    def event(self, times: bool = False) -> Any:
        """Take the host's clock."""
        return _Moment()


def _runtime_calls(profiled: profile) -> dict[str, int]:
    # cudaGraphLaunch, cuLaunchKernel; but no kernel of cutlass
    return {one.key: one.count for one in profiled.key_averages() if re.match(r"cu(da)?[A-Z]", one.key)}


class _Moment:
    def __init__(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, later: _Moment) -> float:
        return (later.at - self.at) * 1e3


def compare(device: Card, base: Call, other: Call, rounds: int, num: int) -> dict[str, Any]:
    """
    Time two calls in turn, so that a slow moment of the card hits both.

    num:     calls in a row
    returns: milliseconds of each, medians over the rounds, and the ratios of neighbours: median, least, most
    """
    times: list[tuple[float, float]] = []
    for number in range(rounds):
        pair = [device.milliseconds(call, num) for call in ((base, other) if number % 2 else (other, base))]
        times.append((pair[0], pair[1]) if number % 2 else (pair[1], pair[0]))
    ratios = [slow / fast for fast, slow in times]
    return {
        "base_ms": median(one for one, _ in times),
        "ms": median(one for _, one in times),
        "ratio": [round(statistics.median(ratios), 4), round(min(ratios), 4), round(max(ratios), 4)],
    }


def median(values: Iterator[float] | Sequence[float]) -> float:
    """Of some figures, to five digits."""
    return float(f"{statistics.median(values):.5g}")


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Compare bit by bit: NaN is NaN."""
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
