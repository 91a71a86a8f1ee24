"""
Worker process: kernels behind a forward, made as those of `triton_kernels` are: which tokens are lost, and which stay of
those that were sampled at once.

Imports neither vllm nor torch's own operations.
"""

from __future__ import annotations

import triton
import triton.language as tl

from saeclamp_server.engine.worker import program_layout as layout

NUM_EDITS = tl.constexpr(layout.NUM_EDITS)


@triton.jit
def find_lost(
    last_hidden: tl.tensor, stride: tl.tensor, step: tl.tuple, programs: tl.tuple, D: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    """Mark a token as lost if its request is edited and its last hidden state is not finite."""
    token = tl.program_id(0).to(tl.int64)
    program = tl.load(step.program + token)
    if program < 0:
        return
    if tl.load(programs.headers + program * 4 + NUM_EDITS) == 0:
        return
    column = tl.arange(0, BLOCK)
    x = tl.load(last_hidden + token * stride + column, mask=column < D, other=0.0).to(tl.float32)
    if tl.sum(((x != x) | (tl.abs(x) == float("inf"))).to(tl.int32)) > 0:
        tl.store(step.is_lost + token, tl.full((), 1, tl.int8))


@triton.jit
def find_kept(
    program: tl.tensor,
    ends: tl.tuple,
    sampled: tl.tuple,
    num_computed: tl.tensor,
    kept_to: tl.tensor,
    MAX_SAMPLED: tl.constexpr,
    MAX_STOPS: tl.constexpr,
) -> None:
    """Find behind which position a request's tokens do not stay: `DraftSettlement` has the reason and the shapes."""
    nth = tl.program_id(0).to(tl.int64)
    number, row = tl.load(program + nth), tl.load(sampled.row + nth)
    if (number < 0) | (row < 0):
        return
    num = tl.load(sampled.num + nth)
    at, stop = tl.arange(0, MAX_SAMPLED), tl.arange(0, MAX_STOPS)
    # neither is a token, and they are not the same
    token = tl.load(sampled.tokens + nth * sampled.stride + at, mask=at < num, other=-1)
    stop_id = tl.load(ends.stop_ids + nth * ends.num_stops + stop, mask=stop < ends.num_stops, other=-2)
    is_last = tl.sum((token[:, None] == stop_id[None, :]).to(tl.int32), axis=1) > 0
    num_kept = tl.min(tl.where(is_last & (at < num), at + 1, num))
    behind = tl.load(num_computed + row) - (num - num_kept)
    tl.store(kept_to + number, tl.minimum(behind.to(tl.int64), tl.load(ends.max_position + nth)))
