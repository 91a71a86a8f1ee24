"""
The op inside what torch compiles: the code edits the buffer itself, with no copy before or behind.

Then the compiled functions are captured as one graph, and as two with a call between them, as vLLM cuts a model where
attention is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from benchmarks.h200.device import Card
from benchmarks.h200.record import Record
from benchmarks.h200.tables import Shape, Tables, kinds
from torch import Tensor
from torch._inductor.utils import run_and_get_code

from saeclamp_server.engine.worker.ops import steer_op

SITE = 0
TOLERANCE = 1e-3
COPIES = r"clone|auto_functional|\.copy_\("
"""Traces in compiled code of a buffer that is copied for an op that changes it."""


class Inputs(NamedTuple):
    """A decoder layer's end, and the beginning of the next."""

    x: Tensor
    """(num_tokens, width)"""
    residual: Tensor
    down: Tensor
    """(width, width), and so is `up`."""
    up: Tensor


def layer_end(x: Tensor, residual: Tensor, down: Tensor) -> Tensor:
    """Return the edited residual stream."""
    hidden = x @ down
    steer_op(hidden, residual, SITE)
    return hidden + residual


def next_layer(resid: Tensor, up: Tensor) -> Tensor:
    """Norm the stream, and multiply it."""
    return (resid * torch.rsqrt(resid.square().mean(dim=1, keepdim=True) + 1e-5)) @ up


def run(device: Card, record: Record) -> None:
    """Compile, look at the code, and compare with what is not compiled. Raises AssertionError where they differ."""
    width, num = (64, 4) if device.is_dry else (4096, 64)
    shape = Shape(width, num_features=64 * num, sae_at=SITE)
    tables = Tables(device, shape, num, num)
    names = ["16 features each" if nth % 2 else "1 feature each" for nth in range(num)]
    batch = tables.batch([tables.add(kinds(shape, nth, num)[name]) for nth, name in enumerate(names)], 1, 1)
    generator = torch.Generator(device.torch).manual_seed(0)
    x, residual = torch.randn(2, num, width, generator=generator, device=device.torch)
    down, up = torch.randn(2, width, width, generator=generator, device=device.torch) / width**0.5
    inputs, executor = Inputs(x, residual, down, up), tables.steering.executor
    with torch.inference_mode():
        executor.clear()
        plain = _both(layer_end, next_layer, inputs)
        executor.map_tokens(batch)
        wanted = _both(layer_end, next_layer, inputs)
        assert _error(plain, wanted) > TOLERANCE, "the edits show"
        first, second = (torch.compile(one, fullgraph=True, dynamic=False) for one in (layer_end, next_layer))
        resid, code = run_and_get_code(first, *inputs[:3])
        about = _about(code)
        record.put("code", about)
        assert not about["copies"], "the op's buffer is not copied"
        errors = {"compiled": _error(second(resid, up), wanted)}
        for name, capture in (("in one graph", _in_one_graph), ("in pieces", _in_pieces)):
            executor.clear()
            replay, out = capture(device, first, second, inputs)
            executor.map_tokens(batch)
            replay()
            errors[name] = _error(out[-1], wanted)
    record.put("errors", errors)
    assert max(errors.values()) < TOLERANCE, "compiled, it does the same"


def _both(first: Callable[..., Tensor], second: Callable[..., Tensor], inputs: Inputs) -> Tensor:
    return second(first(*inputs[:3]), inputs.up)


def _about(code: Sequence[str]) -> dict[str, Any]:
    """Say how the compiled code calls the op, and what it copies."""
    lines = [line.strip() for line in "\n".join(code).splitlines()]
    calls = [line for line in lines if "saeclamp_steer" in line and "(" in line and not line.startswith(("#", "//"))]
    copies = [line for line in lines if re.search(COPIES, line) and not line.startswith(("#", "//"))]
    return {"calls": calls, "copies": copies}


def _in_one_graph(
    device: Card, first: Callable[..., Tensor], second: Callable[..., Tensor], inputs: Inputs
) -> tuple[Callable[[], Any], list[Tensor]]:
    out: list[Tensor] = []
    return device.capture(lambda: out.append(_both(first, second, inputs))), out


def _in_pieces(
    device: Card, first: Callable[..., Tensor], second: Callable[..., Tensor], inputs: Inputs
) -> tuple[Callable[[], Any], list[Tensor]]:
    resids: list[Tensor] = []
    out: list[Tensor] = []
    between = torch.empty_like(inputs.residual)
    pieces = [
        device.capture(lambda: resids.append(first(*inputs[:3]))),
        device.capture(lambda: out.append(second(between, inputs.up))),
    ]

    def replay() -> None:
        pieces[0]()
        between.copy_(resids[-1])  # attention, for one, is called outside of graphs
        pieces[1]()

    return replay, out


def _error(found: Tensor, wanted: Tensor) -> float:
    return float(f"{float((found - wanted).norm() / wanted.norm()):.2g}")
