"""
Worker process: the edit of a site as one Triton kernel for CUDA, with one program instance per token. Not used yet.

It computes what `clamping.read_acts` and `clamping.decoder_delta` do for SAEs whose features are read one by one (ReLU,
JumpReLU), on the sum of `hidden` and `residual`. Its launch depends on nothing that changes from step to step but the number
of tokens, it allocates nothing and never waits for the device, so it can be captured in a CUDA graph: the contents of the
buffers, which stay where they are, decide what a replay does. It must have run once before the capture, with the same width
and types, because that is when Triton compiles it.

Imports neither vllm nor the rest of the server.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

UNTOUCHED = -1
"""Value in `StepBuffers.program_of_token` of a token that no program touches."""
UNCOUNTED, PROMPT, GENERATED = 0, 1, 2
"""Values in `StepBuffers.counts_as`; the last two minus 1 are columns of `EditStatBuffers.sums`."""
END = torch.iinfo(torch.int64).max
"""`Entry.last` of a range without an end."""

ELEMENTS_PER_WARP = 512
"""16 per thread: as many loads in flight as leave the three rows that are needed at once in registers, up to d = 8192."""
MAX_WARPS = 16


class Entry(NamedTuple):
    """Edit of one feature over one range of positions. An edit of several ranges is several entries with one slot."""

    row: int
    """Row of the feature in `FeatureRowTable`."""
    move: tuple[float, float, float, float]
    """The fields of a `clamping.ActivationUpdate`: offset, gain, low, high."""
    slot: int
    """Slot of the edit in `EditStatBuffers`."""
    first: int = 0
    """First position of the range."""
    last: int = END
    """Position after the last one."""
    special: bool = False
    """True if special tokens and position 0 are touched too."""


class StepBuffers(NamedTuple):
    """Inputs of a step, per token of the batch."""

    program_of_token: Tensor
    """(max_tokens,) int32; UNTOUCHED leaves a token alone, and padding must say so"""
    position: Tensor
    """(max_tokens,) int64, in its request"""
    is_sink: Tensor
    """(max_tokens,) int8: special tokens and position 0"""
    counts_as: Tensor
    """(max_tokens,) int8: UNCOUNTED (it was counted before a preemption), PROMPT or GENERATED"""

    @classmethod
    def allocate(cls, max_tokens: int, device: torch.device) -> StepBuffers:
        """Make buffers in which no token is touched."""
        return cls(
            torch.full((max_tokens,), UNTOUCHED, dtype=torch.int32, device=device),
            torch.zeros(max_tokens, dtype=torch.int64, device=device),
            torch.zeros(max_tokens, dtype=torch.int8, device=device),
            torch.zeros(max_tokens, dtype=torch.int8, device=device),
        )

    def load(self, program_of_token: Tensor, position: Tensor, is_sink: Tensor, counts_as: Tensor) -> None:
        """
        Fill in a step; tokens beyond it become untouched.

        Each is (num_tokens,), on any device.
        """
        num_tokens = len(program_of_token)
        for buffer, values in zip(self, (program_of_token, position, is_sink, counts_as), strict=True):
            buffer[:num_tokens].copy_(values, non_blocking=True)
        self.program_of_token[num_tokens:].fill_(UNTOUCHED)


class ProgramTable(NamedTuple):
    """The entries of every live program, one program's after the other's."""

    entry_start: Tensor
    """(max_programs + 1,) int32: program p has entries `entry_start[p]` to `entry_start[p + 1]`"""
    row: Tensor
    """(max_entries,) int32, and so are the others, by field of `Entry`"""
    move: Tensor
    """(max_entries, 4) fp32"""
    first: Tensor
    """(max_entries,) int64"""
    last: Tensor
    """(max_entries,) int64"""
    special: Tensor
    """(max_entries,) int8"""
    slot: Tensor
    """(max_entries,) int32"""

    @classmethod
    def allocate(cls, max_programs: int, max_entries: int, device: torch.device) -> ProgramTable:
        """Make a table of empty programs."""
        return cls(
            torch.zeros(max_programs + 1, dtype=torch.int32, device=device),
            torch.zeros(max_entries, dtype=torch.int32, device=device),
            torch.zeros(max_entries, 4, dtype=torch.float32, device=device),
            torch.zeros(max_entries, dtype=torch.int64, device=device),
            torch.zeros(max_entries, dtype=torch.int64, device=device),
            torch.zeros(max_entries, dtype=torch.int8, device=device),
            torch.zeros(max_entries, dtype=torch.int32, device=device),
        )

    def load(self, programs: Sequence[Sequence[Entry]]) -> None:
        """Replace all programs. They must fit into the table."""
        entries = [entry for program in programs for entry in program]
        assert len(programs) < len(self.entry_start), "as many programs as the table was made for"
        assert len(entries) <= len(self.row), "as many entries as the table was made for"
        start = torch.zeros(len(self.entry_start), dtype=torch.int32)
        start[1 : len(programs) + 1] = torch.tensor([len(program) for program in programs], dtype=torch.int32)
        self.entry_start.copy_(start.cumsum(0))
        if entries:
            for name in ("row", "move", "first", "last", "special", "slot"):
                column: Tensor = getattr(self, name)
                column[: len(entries)].copy_(torch.tensor([getattr(e, name) for e in entries], dtype=column.dtype))


class FeatureRowTable(NamedTuple):
    """Rows of the features in use at a site, of one SAE or several."""

    W_enc: Tensor
    """(num_rows, d), fp32 or bf16"""
    b_enc: Tensor
    """(num_rows,) fp32"""
    threshold: Tensor
    """(num_rows,) fp32"""
    W_dec: Tensor
    """(num_rows, d), fp32 or bf16"""
    dec_norm: Tensor
    """(num_rows,) fp32, norms of the rows of W_dec"""

    @classmethod
    def from_sae(cls, W_enc: Tensor, b_enc: Tensor, threshold: Tensor, W_dec: Tensor) -> FeatureRowTable:
        """Make a table of all rows of an SAE (see `sae.FeatureRows`); the matrices are copied only if they are strided."""
        dec_norm = torch.linalg.vector_norm(W_dec, dim=1, dtype=torch.float32)
        return cls(W_enc.contiguous(), b_enc.float(), threshold.float(), W_dec.contiguous(), dec_norm)

    @classmethod
    def allocate(cls, num_rows: int, d: int, dtype: torch.dtype, device: torch.device) -> FeatureRowTable:
        """Make a table with room for rows that `load` brings."""
        matrices = [torch.zeros(num_rows, d, dtype=dtype, device=device) for _ in range(2)]
        return cls.from_sae(
            matrices[0], torch.zeros(num_rows, device=device), torch.zeros(num_rows, device=device), matrices[1]
        )

    def load(self, first: int, W_enc: Tensor, b_enc: Tensor, threshold: Tensor, W_dec: Tensor) -> None:
        """
        Replace rows from `first` on, which no program in flight may use.

        W_enc, W_dec: (num_new, d);  b_enc, threshold: (num_new,)
        """
        new = slice(first, first + len(b_enc))
        for bank, rows in zip(self[:4], (W_enc, b_enc, threshold, W_dec), strict=True):
            bank[new].copy_(rows)
        # of what is stored, not of what was given: bf16 rounds
        self.dec_norm[new].copy_(torch.linalg.vector_norm(self.W_dec[new], dim=1, dtype=torch.float32))


class EditStatBuffers(NamedTuple):
    """Edit stats, one slot per row, as in `edit_stats.EditStats`."""

    sums: Tensor
    """(num_slots, 4) fp64: prompt positions, generated positions, activations, doses"""
    peaks: Tensor
    """(num_slots, 2) fp32: activation, dose"""

    @classmethod
    def allocate(cls, num_slots: int, device: torch.device) -> EditStatBuffers:
        """Make slots that are zero, sums and peaks alike."""
        return cls(
            torch.zeros(num_slots, 4, dtype=torch.float64, device=device),
            torch.zeros(num_slots, 2, dtype=torch.float32, device=device),
        )


def clamp_residual(
    hidden: Tensor,
    residual: Tensor | None,
    step: StepBuffers,
    programs: ProgramTable,
    bank: FeatureRowTable,
    tallies: EditStatBuffers,
) -> None:
    """
    Edit the residual stream `hidden + residual` in place, on the summand `hidden`; untouched tokens keep their bits.

    hidden:   (num_tokens, d), fp32 or bf16
    residual: (num_tokens, d) or None
    """
    num_tokens, d = hidden.shape
    assert num_tokens <= len(step.program_of_token), "no more tokens than the buffers were made for"
    assert hidden.stride(1) == 1, "a token's vector lies in one piece"
    assert bank.W_enc.shape[1] == bank.W_dec.shape[1] == d, "rows as wide as the stream"
    if num_tokens == 0:
        return
    residual_stride = 0
    if residual is not None:
        assert residual.shape == hidden.shape
        assert residual.stride(1) == 1
        residual_stride = residual.stride(0)
    block = triton.next_power_of_2(d)
    num_warps = min(MAX_WARPS, max(1, block // ELEMENTS_PER_WARP))
    _clamp_token[(num_tokens,)](
        hidden, residual, step, programs, bank, tallies, hidden.stride(0), residual_stride,
        D=d, BLOCK=block, num_warps=num_warps,
    )  # fmt: skip


@triton.jit
def _clamp_token(
    hidden: tl.tensor,
    residual: tl.tensor,
    step: tl.tuple,
    programs: tl.tuple,
    bank: tl.tuple,
    tallies: tl.tuple,
    hidden_stride: tl.tensor,
    residual_stride: tl.tensor,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """
    Edit one token.

    The whole vector is in registers, so every activation is of the unedited one: `hidden` is written after all reads.
    """
    token = tl.program_id(0)
    program = tl.load(step.program_of_token + token)
    if program < 0:
        return
    column = tl.arange(0, BLOCK)
    inside = column < D
    # int64: rows times width may exceed what int32 holds
    place = hidden + token.to(tl.int64) * hidden_stride + column
    summand = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    x = summand
    if residual is not None:
        x += tl.load(residual + token.to(tl.int64) * residual_stride + column, mask=inside, other=0.0).to(tl.float32)
    length = tl.sqrt(tl.sum(x * x))

    position = tl.load(step.position + token)
    is_sink = tl.load(step.is_sink + token)
    counts_as = tl.load(step.counts_as + token)
    change = tl.zeros((BLOCK,), dtype=tl.float32)
    num_touching = 0
    for entry in range(tl.load(programs.entry_start + program), tl.load(programs.entry_start + program + 1)):
        if _is_touching(programs, entry, position, is_sink):
            row = tl.load(programs.row + entry).to(tl.int64)
            # asked for before the encoder's row is summed, so that both are on their way at once
            decoder = tl.load(bank.W_dec + row * D + column, mask=inside, other=0.0).to(tl.float32)
            act = _read_act(x, bank, row, column, inside, D)
            moved = _moved(programs.move + entry * 4, act)
            change += moved * decoder
            num_touching += 1
            if counts_as != 0:
                slot = tl.load(programs.slot + entry).to(tl.int64)
                dose = tl.abs(moved) * tl.load(bank.dec_norm + row) / tl.maximum(length, TINY)
                _count(tallies, slot, counts_as, act, dose)
    # adding zero would not do: it turns -0.0 into 0.0
    if num_touching > 0:
        tl.store(place, (summand + change).to(hidden.dtype.element_ty), mask=inside)


TINY: tl.constexpr = tl.constexpr(torch.finfo(torch.float32).tiny)


@triton.jit
def _is_touching(programs: tl.tuple, entry: tl.tensor, position: tl.tensor, is_sink: tl.tensor) -> tl.tensor:
    in_scope = (position >= tl.load(programs.first + entry)) & (position < tl.load(programs.last + entry))
    return in_scope & ((is_sink == 0) | (tl.load(programs.special + entry) != 0))


@triton.jit
def _read_act(
    x: tl.tensor, bank: tl.tuple, row: tl.tensor, column: tl.tensor, inside: tl.tensor, D: tl.constexpr
) -> tl.tensor:
    encoder = tl.load(bank.W_enc + row * D + column, mask=inside, other=0.0).to(tl.float32)
    pre = tl.sum(x * encoder) + tl.load(bank.b_enc + row)
    return tl.where(pre > tl.load(bank.threshold + row), pre, 0.0)


@triton.jit
def _moved(move: tl.tensor, act: tl.tensor) -> tl.tensor:
    offset, gain, low, high = tl.load(move), tl.load(move + 1), tl.load(move + 2), tl.load(move + 3)
    return tl.minimum(tl.maximum(offset + gain * act, low - act), high - act)


@triton.jit
def _count(tallies: tl.tuple, slot: tl.tensor, counts_as: tl.tensor, act: tl.tensor, dose: tl.tensor) -> None:
    # relaxed: they are read after the kernel, and order nothing within it
    sums, peaks = tallies.sums + slot * 4, tallies.peaks + slot * 2
    tl.atomic_add(sums + counts_as.to(tl.int32) - 1, tl.full((), 1.0, tl.float64), sem="relaxed")
    tl.atomic_add(sums + 2, act.to(tl.float64), sem="relaxed")
    tl.atomic_add(sums + 3, dose.to(tl.float64), sem="relaxed")
    tl.atomic_max(peaks, act, sem="relaxed")
    tl.atomic_max(peaks + 1, dose, sem="relaxed")
