"""
Worker process: a program compiled for one engine and one length of the prompt: names are checked, positions are numbers, and
edits, reads and rules are rows of the program tables. Host-side and free of vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from saeclamp_saes.clamping import UPDATES
from saeclamp_server.engine.worker.program_layout import (
    AGGREGATED,
    CARRIED,
    FOREVER,
    LASTING,
    MANY,
    SPECIAL,
    Aggregate,
    Operation,
)
from saeclamp_server.steering.program import ComparisonSpec, EditSpec, Form, RuleSpec, SteeringProgram
from saeclamp_server.steering.token_ranges import resolve_ranges
from saeclamp_server.vector_names import vector_of

Ranges = list[tuple[int, int]]
"""(from, included; to, excluded) pairs, as absolute positions; ascending, and apart."""


class LoadedWeights(NamedTuple):
    """Weights that this engine has loaded: an SAE, a vector bank, or one vector in a bank."""

    d_sae: int
    sha256: str
    """Hash of the weights and of the options with which they are read; empty for a bank."""
    number: int = 0
    """Number of the SAE or bank among all of this engine."""
    reads_at: int = 0
    """Number of the site where it reads."""
    writes_at: tuple[int, ...] = (0,)
    """Numbers of the sites where it writes."""
    row: tuple[str, int] | None = None
    """For a vector: the name of its bank, and its row there."""

    @property
    def is_carried(self) -> bool:
        """True if activations are kept from the site where it reads to those where it writes."""
        return self.writes_at != (self.reads_at,)


NamedT = TypeVar("NamedT", EditSpec, ComparisonSpec)


def vector_key(name: str, sha256: str) -> str:
    """Make a vector's key among the loaded weights, with its hash: an older one of the same name may still be in use."""
    return f"{name} {sha256}"


class Rows(NamedTuple):
    """Rows for one of the program tables, those of one site after the other."""

    sites: NDArray[np.int64]
    """(num_rows,), ascending"""
    ints: NDArray[np.int32]
    """(num_rows, 8), columns as `program_layout` has them. A run of ranges begins at a place among the program's own."""
    floats: NDArray[np.float32]
    """(num_rows, 4): of an edit its `clamping.ActivationUpdate`"""


class CompiledRule(NamedTuple):
    """A rule of a program, as its host needs it; its condition is in the tables."""

    aborts: bool
    site: int
    """Number of the last site that it reads, where all its activations are known."""
    num_comparisons: int


class CompiledReadout(NamedTuple):
    """A program's readout: activations that are shown of each token."""

    columns: NDArray[np.int64]
    """(num_features,), columns of the activations that are shown."""
    saes: tuple[str, ...]
    """SAEs whose strongest features are shown."""
    top_k: int
    ranges: Ranges
    special: bool


@dataclass(frozen=True)
class CompiledProgram:
    """A program checked against the SAEs of this engine."""

    prompt_len: int
    edits: Rows
    reads: Rows
    """Activations that are read for rules and readouts, and those of edits that are carried to another site."""
    aggregates: Rows
    """Comparisons that look at several tokens, at the site where their rule is judged."""
    conditions: Rows
    """A row for each rule."""
    code: NDArray[np.int32]
    """(num_instructions, 2): operation, operand"""
    bounds: NDArray[np.float32]
    """(num_instructions, 2): of a comparison its bound, and 1 for above it, -1 for below it"""
    ranges: NDArray[np.int32]
    """(num_ranges, 2): the ranges of all scopes that have several, one scope's after the other's"""
    num_edits: int
    num_reads: int
    rules: tuple[CompiledRule, ...]
    readout: CompiledReadout | None
    itemised: bool
    """True if the answer shows each edit of each token."""
    reports_steps: bool
    """True if the scheduler needs a report on each step."""

    @classmethod
    def compile(cls, program: SteeringProgram, loaded: Mapping[str, LoadedWeights], prompt_len: int) -> CompiledProgram:
        """
        Find a program's positions in a request with a prompt of that length, and its features among the loaded weights.

        loaded: by the SAE's name, or the vector's `vector_key`
        Raises KeyError for an SAE that this engine has not loaded, ValueError for a vector that it has not, for other
        weights than the program was resolved against, or an index outside the SAE.
        """
        program = _with_rows(program, loaded)
        for name, sha256 in program.saes:
            if loaded[name].sha256 != sha256:
                raise ValueError(f"SAE {name!r} has other weights in the engine than in the API server.")
        compiler = _Compiler(program, loaded, prompt_len)
        rules = tuple(compiler.rule(number, rule) for number, rule in enumerate(program.rules))
        readout = compiler.readout()
        for number in range(len(program.edits)):
            compiler.edit(number)
        return cls(
            prompt_len=prompt_len,
            edits=compiler.edits.table(),
            reads=compiler.reads.table(),
            aggregates=compiler.aggregates.table(),
            conditions=compiler.conditions.table(),
            code=np.array(compiler.code, np.int32).reshape(-1, 2),
            bounds=np.array(compiler.bounds, np.float32).reshape(-1, 2),
            ranges=np.array(compiler.ranges, np.int64).clip(max=FOREVER).astype(np.int32).reshape(-1, 2),
            num_edits=len(program.edits),
            num_reads=compiler.num_reads,
            rules=rules,
            readout=readout,
            itemised=program.itemised,
            reports_steps=program.reports_steps,
        )


def _with_rows(program: SteeringProgram, loaded: Mapping[str, LoadedWeights]) -> SteeringProgram:
    """Replace each vector by its row of a bank, so that the engine knows features alone."""
    weights = dict(program.saes)
    rows: dict[str, tuple[str, int]] = {}
    for name in (name for name in program.sae_names if vector_of(name) is not None):
        # by name and hash, as the vector may have been deleted and its name given to another since the program was made
        vector = loaded.get(vector_key(name, weights[name]))
        if vector is None or vector.row is None:
            raise ValueError(f"{name!r} is not in the engine as it was when the request began.")
        rows[name] = vector.row

    def placed(named: NamedT) -> NamedT:
        return replace(named, sae=rows[named.sae][0], index=rows[named.sae][1]) if named.sae in rows else named

    rules = tuple(replace(rule, comparisons=tuple(map(placed, rule.comparisons))) for rule in program.rules)
    readout = program.readout
    if readout is not None:
        readout = replace(readout, features=tuple(rows.get(sae, (sae, index)) for sae, index in readout.features))
    return replace(
        program,
        edits=tuple(map(placed, program.edits)),
        rules=rules,
        readout=readout,
        saes=tuple(pair for pair in program.saes if pair[0] not in rows),
    )


class _RowList:
    """Collects rows for a table."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, tuple[int, ...], tuple[float, ...]]] = []

    def add(self, site: int, ints: tuple[int, ...], floats: tuple[float, ...] = (0.0,) * 4) -> None:
        self._rows.append((site, ints, floats))

    def table(self) -> Rows:
        rows = sorted(self._rows, key=lambda row: row[0])
        return Rows(
            np.array([site for site, _, _ in rows], np.int64),
            np.array([ints for _, ints, _ in rows], np.int32).reshape(-1, 8),
            np.array([floats for _, _, floats in rows], np.float32).reshape(-1, 4),
        )


class _Compiler:
    """Collects the rows of one program."""

    def __init__(self, program: SteeringProgram, loaded: Mapping[str, LoadedWeights], prompt_len: int) -> None:
        self._program, self._loaded, self._prompt_len = program, loaded, prompt_len
        self.edits, self.reads, self.conditions, self.aggregates = _RowList(), _RowList(), _RowList(), _RowList()
        self.code: list[tuple[int, int]] = []
        self.bounds: list[tuple[float, float]] = []
        self.ranges: Ranges = []
        self.num_reads = 0
        self._num_aggregates = 0
        self._runs: dict[tuple[tuple[int, int], ...], int] = {}
        """Place of each scope's run among `ranges`."""

    def edit(self, number: int) -> None:
        """Add an edit: a row at each site where it writes, and the read that it is carried by."""
        edit = self._program.edits[number]
        weights = self._weights(edit.sae, edit.index)
        if edit.rule is not None and not 0 <= edit.rule < len(self._program.rules):
            raise ValueError(f"There is no rule {edit.rule}.")
        scope = self._scope(resolve_ranges(edit.tokens, self._prompt_len), edit.special)
        if scope is None:
            return
        first, last, flags = scope
        flags |= CARRIED if weights.is_carried else 0
        flags |= LASTING if edit.rule is not None and self._program.rules[edit.rule].lasting else 0
        rule = -1 if edit.rule is None else edit.rule
        for write, site in enumerate(weights.writes_at):
            of = (number, rule, weights.number, edit.index, write)
            self.edits.add(site, (first, last, flags, *of), UPDATES[edit.op](edit.value))
        if weights.is_carried:
            self._read(weights, edit.index, (first, last, flags), number)

    def rule(self, number: int, rule: RuleSpec) -> CompiledRule:
        """Add a rule, and what it reads."""
        scope = self._scope(resolve_ranges(rule.tokens, self._prompt_len), rule.special)
        site = max(self._weights(comparison.sae, comparison.index).reads_at for comparison in rule.comparisons)
        # what is compared lies side by side; what is only aggregated comes behind it
        column, begin = self.num_reads, len(self.code)
        self.num_reads += len(rule.comparisons)
        for nth, comparison in enumerate(rule.comparisons):
            if comparison.over == "token":
                self._read_named(comparison.sae, comparison.index, scope, column + nth)
            else:
                self._aggregate(comparison, scope, site, column + nth)
        self._instructions(_simplified(rule.form), rule.comparisons, column)
        if scope is not None:
            first, last, flags = scope
            flags |= LASTING if rule.lasting else 0
            flags |= AGGREGATED if any(comparison.over != "token" for comparison in rule.comparisons) else 0
            ints = (first, last, flags, number, begin, len(self.code), column, len(rule.comparisons))
            self.conditions.add(site, ints)
        return CompiledRule(rule.aborts, site, len(rule.comparisons))

    def readout(self) -> CompiledReadout | None:
        """Add what the readout shows, if there is one."""
        readout = self._program.readout
        if readout is None:
            return None
        ranges = resolve_ranges(readout.tokens, self._prompt_len)
        scope = self._scope(ranges, readout.special)
        columns = [*range(self.num_reads, self.num_reads + len(readout.features))]
        self.num_reads += len(columns)
        for column, (sae, index) in zip(columns, readout.features, strict=True):
            self._read_named(sae, index, scope, column)
        return CompiledReadout(np.array(columns, np.int64), readout.saes, readout.top_k, ranges, readout.special)

    def _weights(self, sae: str, index: int) -> LoadedWeights:
        weights = self._loaded[sae]
        if not 0 <= index < weights.d_sae:
            raise ValueError(f"SAE {sae!r} has no feature {index}.")
        return weights

    def _read_named(self, sae: str, index: int, scope: tuple[int, int, int] | None, column: int) -> None:
        """Add an activation that is read by name; `scope` is as `_scope` returns it."""
        weights = self._weights(sae, index)
        if scope is not None:
            self._read(weights, index, scope, column)

    def _aggregate(
        self, comparison: ComparisonSpec, scope: tuple[int, int, int] | None, site: int, column: int
    ) -> None:
        """Add a comparison that looks at several tokens, with the activation that it aggregates."""
        source, slot = self.num_reads, self._num_aggregates
        self.num_reads += 1
        self._num_aggregates += 1
        self._read_named(comparison.sae, comparison.index, scope, source)
        if scope is not None:
            kind = Aggregate[comparison.over.upper()]
            self.aggregates.add(site, (*scope, column, source, kind, comparison.window, slot))

    def _read(self, weights: LoadedWeights, index: int, scope: tuple[int, int, int], number: int) -> None:
        first, last, flags = scope
        self.reads.add(weights.reads_at, (first, last, flags, number, -1, weights.number, index, 0))

    def _scope(self, ranges: Ranges, special: bool) -> tuple[int, int, int] | None:
        """Return the columns FIRST, LAST and FLAGS of a scope; None where it has no positions."""
        flags = SPECIAL if special else 0
        if not ranges:
            return None
        if len(ranges) == 1:
            ((first, last),) = ranges
            return min(first, FOREVER), min(last, FOREVER), flags
        begin = self._runs.setdefault(tuple(ranges), len(self.ranges))
        if begin == len(self.ranges):
            self.ranges += ranges
        return begin, begin + len(ranges), flags | MANY

    def _instructions(self, form: Form, comparisons: Sequence[ComparisonSpec], column: int) -> None:
        """Add a condition in postfix order: operands first, then what joins them."""
        if isinstance(form, int):
            comparison = comparisons[form]
            self.code.append((Operation.COMPARE, column + form))
            self.bounds.append((comparison.bound, 1.0 if comparison.above else -1.0))
            return
        kind, parts = form
        for part in parts:
            self._instructions(part, comparisons, column)
        self.code.append((Operation[kind.upper()], len(parts)))
        self.bounds.append((0.0, 0.0))


def _simplified(form: Form) -> Form:
    """Leave out what changes nothing, so that a condition's length is bounded by that of its comparisons."""
    if isinstance(form, int):
        return form
    kind, parts = form
    simple: Any = tuple(map(_simplified, parts))
    if kind != "not":
        return simple[0] if len(simple) == 1 else (kind, simple)
    (part,) = simple
    return part[1][0] if not isinstance(part, int) and part[0] == "not" else ("not", simple)
