"""
Worker process: the program tables, in which the model's device finds what each running request asks for.

They are allocated once and never move, so that a captured graph may read them. Each request that is registered has a number
below `num_programs`, and with it its own rows in every table: nothing is searched, grows or is compacted. The host writes to
them when a request comes or goes, and at no step in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saeclamp.types import MAX_TESTS
from saeclamp_server.engine.worker.compiled_program import CompiledProgram, LoadedWeights, Rows
from saeclamp_server.engine.worker.device_copies import upload, upload_into
from saeclamp_server.engine.worker.program_layout import (
    AGGREGATES,
    BEGIN,
    EDITS,
    END,
    FEATURE,
    FIRST,
    FLAGS,
    FOREVER,
    INSTRUCTIONS,
    LAST,
    MANY,
    RANGES,
    REACHED,
    READS,
    RECENT,
    RULES,
    SUMS,
    WEIGHTS,
)


class Counters(NamedTuple):
    """Counters of one program, or of several along a first dimension; on the device or fetched."""

    sums: Tensor
    """(EDITS, SUMS) fp64, columns as `program_layout` has them"""
    peaks: Tensor
    """(EDITS, 2) fp32: activation, dose; minus infinity where nothing was counted"""
    first_held: Tensor
    """(RULES,) int32, first position at which each rule held; FOREVER: it has not"""
    num_held: Tensor
    """(RULES,) int32, tokens at which it held"""
    num_unjudged: Tensor
    """(RULES,) int32, tokens in its scope at which it was not judged, as they are sinks"""
    first_acts: Tensor
    """(RULES, MAX_TESTS) fp32, activations that its condition compared at the first position"""
    reached: Tensor
    """(1,) int32, behind the last position that was computed"""


class EntryTable:
    """A table of rows, of which each program has the same number at each of its sites."""

    def __init__(self, num_programs: int, num_sites: int, num_rows: int, device: torch.device) -> None:
        """num_rows: of each program"""
        self.num_rows = num_rows
        # one more span than there are programs, which is empty: -1, as tokens without a program have it, finds that one
        self.spans = torch.zeros(num_sites, num_programs + 1, 2, dtype=torch.int32, device=device)
        """(num_sites, num_programs + 1, 2): first row of a program at a site, and the one behind its last"""
        self.ints = torch.zeros(num_programs * num_rows, 8, dtype=torch.int32, device=device)
        self.floats = torch.zeros(num_programs * num_rows, 8, dtype=torch.float32, device=device)
        self.rows = torch.zeros(num_programs * num_rows, 2, dtype=torch.int64, device=device)
        """(num_rows, 2), for the kernels: addresses of a feature's encoder and decoder rows"""
        self.bind: Callable[[EntryTable, int, NDArray[np.int32]], None] | None = None
        """Called with the first of a program's rows, and their ints; writes what an executor needs of the weights."""
        self.weights = np.full(num_programs * num_rows, -1, np.int32)
        """(num_rows,), on the host, of edits and reads: the number of the SAE of each row in use; -1 of the others."""
        self.num_programs_at = np.zeros(num_sites, np.int64)
        """(num_sites,), on the host: programs that have rows there. Without any, a site has nothing to do."""
        self._sites = [np.zeros(0, np.int64)] * num_programs

    def write(self, program: int, rows: Rows, ints: NDArray[np.int32]) -> None:
        """
        Write a program's rows.

        ints: (num_rows, 8), those of `rows` with what is known here alone
        """
        assert len(ints) <= self.num_rows, "a program has its bounds"
        if not len(ints):  # and its spans are empty
            return
        base = program * self.num_rows
        upload_into(self.ints[base : base + len(ints)], ints)
        upload_into(self.floats[base : base + len(ints), :4], rows.floats)
        self.weights[base : base + len(ints)] = ints[:, WEIGHTS]
        if self.bind is not None:
            self.bind(self, base, ints)
        edges = base + np.searchsorted(rows.sites, np.arange(len(self.spans) + 1))
        upload_into(self.spans[:, program], np.stack((edges[:-1], edges[1:]), axis=1).astype(np.int32))
        self._sites[program] = np.unique(rows.sites)
        self.num_programs_at[self._sites[program]] += 1

    def erase(self, program: int) -> None:
        """Empty a program's spans."""
        self.spans[:, program].zero_()
        self.weights[program * self.num_rows : (program + 1) * self.num_rows] = -1
        self.num_programs_at[self._sites[program]] -= 1
        self._sites[program] = np.zeros(0, np.int64)


class ProgramTables:
    """The tables of one worker."""

    def __init__(
        self, num_programs: int, num_sites: int, weights: Sequence[LoadedWeights], device: torch.device
    ) -> None:
        """
        num_programs: requests that run at once, at most
        weights:      all SAEs and banks of the engine
        """
        self.num_programs, self.device = num_programs, device
        max_writes = max((len(one.writes_at) for one in weights), default=1)
        num_reads = READS + (EDITS if any(one.is_carried for one in weights) else 0)
        self.edits = EntryTable(num_programs, num_sites, EDITS * max_writes, device)
        self.reads = EntryTable(num_programs, num_sites, num_reads, device)
        self.aggregates = EntryTable(num_programs, num_sites, AGGREGATES, device)
        self.conditions = EntryTable(num_programs, num_sites, RULES, device)

        def int32(*shape: int, fill: int = 0) -> Tensor:
            return torch.full(shape, fill, dtype=torch.int32, device=device)

        self.headers = int32(num_programs, 4)
        self.ranges = int32(num_programs * RANGES, 2)
        self.code = int32(num_programs * INSTRUCTIONS, 2)
        self.bounds = torch.zeros(num_programs * INSTRUCTIONS, 2, device=device)
        # fp64: counts and sums over long generations stay exact. Maxima need no more digits than the fp32 they are taken of
        self.sums = torch.zeros(num_programs, EDITS, SUMS, dtype=torch.float64, device=device)
        self.peaks = torch.full((num_programs, EDITS, 2), -torch.inf, device=device)
        self.first_held = int32(num_programs, RULES, fill=FOREVER)
        self.num_held = int32(num_programs, RULES)
        self.num_unjudged = int32(num_programs, RULES)
        self.first_acts = torch.zeros(num_programs, RULES, MAX_TESTS, device=device)
        self.totals = torch.zeros(num_programs, AGGREGATES, 2, dtype=torch.float64, device=device)
        """(num_programs, AGGREGATES, 2) fp64: maximum or sum over the tokens so far, and their number"""
        self.recent = torch.zeros(num_programs, AGGREGATES, RECENT, device=device)
        """(num_programs, AGGREGATES, RECENT) fp32, the last activations, the nth at n modulo RECENT"""
        self.step_rows = int32(num_programs, 2)
        """(num_programs, 2): row of the program's first token in the step's batch, and the number of its tokens"""
        self.sink_norms = torch.full((num_sites,), torch.inf, device=device)
        """(num_sites,) fp32, norm above which a site's vector is that of a sink; infinity until the model is measured"""
        self.num_with_ranges = 0
        """Programs that have scopes of several ranges."""
        self._has_ranges = [False] * num_programs
        self._free: list[int] = [*range(num_programs)][::-1]

    @property
    def is_full(self) -> bool:
        return not self._free

    def add(self, program: CompiledProgram, features: Sequence[NDArray[np.int64]] | None = None) -> int:
        """
        Write a program, with all its counters at zero, and return its number.

        features: of the rows of its edits and its reads, where they are others than the program's: rows of a row cache
        Raises RuntimeError where `num_programs` are there.
        """
        if self.is_full:
            raise RuntimeError(f"{self.num_programs} requests are steered at once, and there is no room for another.")
        number = self._free.pop()
        edits, reads = (_placed(rows.ints, number) for rows in (program.edits, program.reads))
        if features is not None:
            edits[:, FEATURE], reads[:, FEATURE] = features
        self.edits.write(number, program.edits, edits)
        self.reads.write(number, program.reads, reads)
        conditions = _placed(program.conditions.ints, number)
        conditions[:, (BEGIN, END)] += number * INSTRUCTIONS
        self.conditions.write(number, program.conditions, conditions)
        self.aggregates.write(number, program.aggregates, _placed(program.aggregates.ints, number))
        self.totals[number] = 0
        _set(self.ranges, number * RANGES, program.ranges)
        _set(self.code, number * INSTRUCTIONS, program.code)
        _set(self.bounds, number * INSTRUCTIONS, program.bounds)
        upload_into(self.headers[number], np.array([program.prompt_len, program.num_edits, 0, 0], np.int32))
        for tensor, unused in zip(self._counters(number), (0.0, -torch.inf, FOREVER, 0, 0, 0.0, 0), strict=True):
            tensor.fill_(unused)
        self._has_ranges[number] = len(program.ranges) > 0
        self.num_with_ranges += self._has_ranges[number]
        return number

    def remove(self, numbers: Sequence[int]) -> Counters:
        """
        Erase some programs, and return their counters, (num_programs, ...), on the device.

        Whatever is written to the tables afterwards comes behind that copy on the same stream, so the numbers are free.
        """
        counters = self.counters(numbers)
        for number in numbers:
            for table in (self.edits, self.reads, self.aggregates, self.conditions):
                table.erase(number)
            self.num_with_ranges -= self._has_ranges[number]
            self._free.append(number)
        return counters

    def counters(self, numbers: Sequence[int]) -> Counters:
        """Copy the counters of some programs, (num_programs, ...), on the device."""
        index = upload(np.array(numbers, np.int64), self.device)
        return Counters._make(table.index_select(0, index) for table in self._all_counters())

    def restore(self, number: int, counters: Counters) -> None:
        """Set the counters of a program that was removed, and has come again."""
        for tensor, values in zip(self._counters(number), counters, strict=True):
            tensor.copy_(values)

    def _counters(self, number: int) -> Counters:
        """Return views of a program's counters."""
        return Counters._make(table[number] for table in self._all_counters())

    def _all_counters(self) -> Counters:
        """Return views of all programs' counters."""
        return Counters(
            self.sums,
            self.peaks,
            self.first_held,
            self.num_held,
            self.num_unjudged,
            self.first_acts,
            self.headers[:, REACHED : REACHED + 1],
        )


def _placed(ints: NDArray[np.int32], number: int) -> NDArray[np.int32]:
    """Move runs of ranges to where the program has its ranges."""
    placed = ints.copy()
    has_run = placed[:, FLAGS] & MANY != 0
    placed[np.ix_(has_run, (FIRST, LAST))] += number * RANGES
    return placed


def _set(table: Tensor, first: int, rows: NDArray[np.int32] | NDArray[np.float32]) -> None:
    upload_into(table[first : first + len(rows)], rows)
