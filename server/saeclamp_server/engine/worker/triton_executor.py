"""
Worker process: the executor for GPUs, which launches the kernels of `triton_kernels`.

At every site it launches the same kernels whatever the step is: a token without a program costs a load of four bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from torch import Tensor

from saeclamp_server.engine.worker import judge_kernel, step_end_kernels
from saeclamp_server.engine.worker import triton_kernels as kernels
from saeclamp_server.engine.worker.device_copies import upload
from saeclamp_server.engine.worker.loaded_sae import LoadedSAE
from saeclamp_server.engine.worker.program_layout import (
    BIAS,
    BY_LENGTH,
    BY_STD,
    CENTERED,
    EDITS,
    FEATURE,
    FLAGS,
    NARROW,
    NORM_EPS,
    ROW_NORM,
    THRESHOLD,
    WEIGHTS,
    WRITE,
)
from saeclamp_server.engine.worker.program_tables import EntryTable, ProgramTables
from saeclamp_server.engine.worker.site_vectors import SiteVectors
from saeclamp_server.engine.worker.step_tables import Batch, StepTables

ELEMENTS_PER_WARP = 512
"""16 per thread: as many loads in flight as leave the rows that are needed at once in registers, up to d = 8192."""
MAX_WARPS = 16
MAP_BLOCK = 256
ROW_ALIGNMENT = 16
"""Bytes that a thread asks for at once of a row of weights."""


class _Table(NamedTuple):
    spans: Tensor
    """(num_programs + 1, 2) int32, those of one site"""
    ints: Tensor
    floats: Tensor
    rows: Tensor
    """(num_rows, 2) int64, addresses of a feature's encoder and decoder rows"""


class _Step(NamedTuple):
    program: Tensor
    position: Tensor
    is_sink: Tensor
    acts: Tensor
    totals: Tensor
    carried: Tensor
    items: Tensor
    verdicts: Tensor
    unjudged: Tensor
    is_edited: Tensor
    is_lost: Tensor


class _Programs(NamedTuple):
    headers: Tensor
    ranges: Tensor
    code: Tensor
    bounds: Tensor
    totals: Tensor
    recent: Tensor
    step_rows: Tensor
    sums: Tensor
    peaks: Tensor
    first_held: Tensor
    num_held: Tensor
    num_unjudged: Tensor
    first_acts: Tensor


class _Batch(NamedTuple):
    program: Tensor
    first_row: Tensor
    positions: Tensor
    input_ids: Tensor
    is_special: Tensor


class TritonExecutor:
    """Executor of the tables of one worker."""

    def __init__(
        self, programs: ProgramTables, step: StepTables, saes: Sequence[LoadedSAE], is_deferred: bool = False
    ) -> None:
        """
        saes:        all SAEs and banks, in the order of their numbers
        is_deferred: True if counts wait for `settle`, as some of the tokens may be drafts
        Raises ValueError for an SAE that keeps the largest activations only.
        """
        for one in saes:
            if one.whole.top_k is not None:
                raise ValueError(f"{one.name}: each activation of a TopK SAE depends on all others.")
        self._tables, self._step_tables, self._saes = programs, step, saes
        self._places: dict[int, int] = {}
        """Address of each SAE's weights when rows were last bound to them, by its number."""
        self._is_clear = True
        """True if no token of the step tables has a program."""
        self._flags = {"ACTS": step.acts.shape[1], "IS_DEFERRED": is_deferred}
        self._step = _Step(
            step.program,
            step.position,
            step.is_sink.view(torch.int8),
            step.acts,
            step.totals,
            step.carried,
            step.items,
            step.verdicts,
            step.unjudged,
            step.is_edited.view(torch.int8),
            step.is_lost.view(torch.int8),
        )
        self._programs = _Programs(*(getattr(programs, name) for name in _Programs._fields))
        # made once: a step makes no tensor, not even a view
        self._is_special = step.is_special.view(torch.int8)
        self._edits, self._reads, self._aggregates, self._conditions = (
            [_Table(spans, table.ints, table.floats, table.rows) for spans in table.spans]
            for table in (programs.edits, programs.reads, programs.aggregates, programs.conditions)
        )
        self._sink_norms = [*programs.sink_norms]
        for table in (programs.edits, programs.reads):
            table.bind = self._bind

    def map_tokens(self, batch: Batch) -> None:
        """Begin a step; as in `Executor`, and so are the others."""
        self._step_tables.num_tokens = batch.num_tokens
        self._is_clear = False
        own = _Batch(batch.program, batch.first_row, batch.positions, batch.input_ids, self._is_special)
        acts = self._step.acts.shape[1]
        kernels.map_tokens[(len(batch.program) + 1,)](
            own, self._step, self._programs, len(self._step.program),
            ACTS=acts, BLOCK=MAP_BLOCK, WIDE=triton.next_power_of_2(max(acts, 2 * EDITS)),
        )  # fmt: skip

    def clear(self) -> None:
        """Begin a step that reads and edits nothing."""
        self._step_tables.num_tokens = 0
        if not self._is_clear:  # as long as nobody is steered, steps cost nothing here
            self._step.program.fill_(-1)
            self._is_clear = True

    def judge(self, site: int, vectors: SiteVectors) -> None:
        """Read and judge."""
        self._launch(
            kernels.read, vectors, self._reads[site], self._programs, self._sink_norms[site], ACTS=self._flags["ACTS"]
        )
        judge_kernel.judge[(len(vectors.hidden),)](
            self._step, self._aggregates[site], self._conditions[site], self._programs, num_warps=1, **self._flags
        )

    def edit(self, site: int, vectors: SiteVectors) -> None:
        """Edit and count."""
        tables = self._edits[site], self._conditions[site], self._programs
        self._launch(kernels.edit, vectors, *tables, self._sink_norms[site], **self._flags)

    def find_lost(self, last_hidden: Tensor) -> None:
        """Mark what became infinite."""
        d = last_hidden.shape[1]
        assert last_hidden.stride(1) == 1, "a token's state lies in one piece"
        block = triton.next_power_of_2(d)
        step_end_kernels.find_lost[(self._step_tables.num_tokens,)](
            last_hidden, last_hidden.stride(0), self._step, self._programs, D=d, BLOCK=block, num_warps=_num_warps(block)
        )  # fmt: skip

    def settle(self, kept_to: Tensor) -> None:
        """Count what stays."""
        kernels.settle[(self._step_tables.num_tokens,)](self._step, self._programs, kept_to)
        kernels.settle_programs[(self._tables.num_programs,)](self._programs, kept_to)

    def _launch(self, kernel: triton.JITFunction, vectors: SiteVectors, *tables: Any, **flags: Any) -> None:
        hidden, residual = vectors.hidden, vectors.residual
        num_tokens, d = hidden.shape
        assert num_tokens <= len(self._step.program), "no more tokens than the tables were made for"
        assert hidden.stride(1) == 1, "a token's vector lies in one piece"
        assert residual is None or (residual.shape == hidden.shape and residual.stride(1) == 1)
        block = triton.next_power_of_2(d)
        kernel[(num_tokens,)](
            hidden, residual, self._step, *tables,
            hidden.stride(0), 0 if residual is None else residual.stride(0), vectors.norm_eps or 0.0,
            D=d, BLOCK=block, WHOLE_STREAM=vectors.whole_stream, HAS_NORM=vectors.norm_eps is not None,
            num_warps=_num_warps(block), **flags,
        )  # fmt: skip

    def _bind(self, table: EntryTable, first: int, ints: NDArray[np.int32]) -> None:
        """
        Write where the weights of a program's rows are, and what else the kernels need of them.

        first: row of the table
        ints:  (num_rows, 8)
        """
        for number in np.unique(ints[:, WEIGHTS]).tolist():
            here = self._saes[number].sae.rows().encoder.data_ptr()
            if self._places.setdefault(number, here) != here:  # a row cache has grown, and moved
                self._places[number] = here
                for one in (self._tables.edits, self._tables.reads):
                    self._write_weights(one, number, np.flatnonzero(one.weights == number))
            self._write_weights(table, number, first + np.flatnonzero(ints[:, WEIGHTS] == number))

    def _write_weights(self, table: EntryTable, number: int, rows: NDArray[np.int64]) -> None:
        """
        Write addresses and constants of some rows of a table.

        number: of the SAE whose features they are of
        rows:   (num_rows,)
        """
        if not len(rows):
            return
        row = upload(rows, table.ints.device)
        sae = self._saes[number].sae
        weights, norm, width = sae.rows(), sae.input_norm, sae.d_out // len(sae.writes)
        feature, write = table.ints[row, FEATURE].long(), table.ints[row, WRITE].long()
        for column, tensor, offset in ((0, weights.encoder, 0), (1, weights.decoder, write * width)):
            assert tensor.stride(1) == 1, "a row lies in one piece"
            assert tensor.data_ptr() % ROW_ALIGNMENT == 0, "the kernels ask for several elements at once"
            assert tensor.dtype == weights.encoder.dtype, "an SAE's rows have one type"
            address = tensor.data_ptr() + (feature * tensor.stride(0) + offset) * tensor.element_size()
            table.rows[row, column] = address
        parts = weights.decoder.view(len(weights.decoder), len(sae.writes), width)
        table.floats[row, BIAS] = weights.bias[feature]
        table.floats[row, THRESHOLD] = weights.threshold[feature]
        table.floats[row, ROW_NORM] = parts[feature, write].float().norm(dim=1)
        table.floats[row, NORM_EPS] = norm.eps
        scaled = {"none": 0, "std": BY_STD, "l2": BY_LENGTH}[norm.scale]
        narrow = NARROW if weights.encoder.dtype is torch.bfloat16 else 0
        table.ints[row, FLAGS] |= scaled | narrow | (CENTERED if norm.center else 0)


def _num_warps(block: int) -> int:
    return min(MAX_WARPS, max(1, block // ELEMENTS_PER_WARP))
