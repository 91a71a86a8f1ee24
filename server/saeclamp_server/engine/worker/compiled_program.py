"""
Worker process: a program compiled for one engine and one length of the prompt: names are checked, token ranges are numbers,
and edits and reads are sorted by SAE. Host-side and free of vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saeclamp_saes.clamping import UPDATES, ActivationUpdate
from saeclamp_server.steering.program import ComparisonSpec, Form, RuleSpec, SteeringProgram
from saeclamp_server.steering.token_ranges import resolve_ranges

Ranges = list[tuple[int, int]]
"""(from, included; to, excluded) pairs, as absolute positions."""


class LoadedWeights(NamedTuple):
    """Weights that this engine has loaded: an SAE, a vector bank, or one vector in a bank."""

    d_sae: int
    sha256: str
    """Hash of the weights and of the options with which they are read; empty for a bank."""
    site_index: int = 0
    """Number of the site where it reads."""
    row: tuple[str, int] | None = None
    """For a vector: the name of its bank, and its row there."""


def vector_key(name: str, sha256: str) -> str:
    """Make a vector's key among the loaded weights, with its hash: an older one of the same name may still be in use."""
    return f"{name} {sha256}"


class EditTable(NamedTuple):
    """A program's edits of one SAE's features, one array element per edit and range of positions."""

    feature: NDArray[np.int64]
    moves: NDArray[np.float32]
    """(num_edits, 4): one `clamping.ActivationUpdate` per row."""
    start: NDArray[np.int64]
    """First position."""
    end: NDArray[np.int64]
    """Position after the last one."""
    special: NDArray[np.bool_]
    """True if special tokens and position 0 are touched too."""
    edit: NDArray[np.int64]
    """Number of the edit in the program."""
    rule: NDArray[np.int64]
    """Number of the rule that must hold; -1: none, the edit is always made."""


class ReadTable(NamedTuple):
    """A program's reads of one SAE's features, one array element per read and range of positions."""

    feature: NDArray[np.int64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    special: NDArray[np.bool_]
    read: NDArray[np.int64]
    """Number of the read in the program."""


class CompiledRule(NamedTuple):
    """A rule of a program."""

    form: Form
    """Condition on comparisons, by their number in the rule."""
    reads: NDArray[np.int64]
    """(num_comparisons,), numbers of the reads that are compared."""
    bounds: NDArray[np.float32]
    """(num_comparisons,)"""
    above: NDArray[np.bool_]
    """(num_comparisons,); False: the activation must be below its bound."""
    ranges: Ranges
    """Positions at which the condition is evaluated."""
    special: bool
    lasting: bool
    aborts: bool
    site_index: int
    """Number of the last site that it reads, where all its activations are known."""


class CompiledReadout(NamedTuple):
    """A program's readout: activations that are shown of each token."""

    reads: NDArray[np.int64]
    """(num_features,), numbers of the reads that are shown."""
    saes: tuple[str, ...]
    """SAEs whose strongest features are shown."""
    top_k: int
    ranges: Ranges
    special: bool


@dataclass(frozen=True)
class CompiledProgram:
    """A program checked against the SAEs of this engine."""

    saes: Mapping[str, EditTable]
    """Edits, by the SAE's name."""
    num_edits: int
    reads: Mapping[str, ReadTable]
    """Reads, by the SAE's name."""
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
        Sort edits and reads by SAE, and find their positions in a request with a prompt of that length.

        loaded: by the SAE's name, or the vector's `vector_key`
        Raises KeyError for an SAE that this engine has not loaded, ValueError for a vector that it has not, for other
        weights than the program was resolved against, or an index outside the SAE.
        """
        program = _with_rows(program, loaded)
        for name, sha256 in program.saes:
            if loaded[name].sha256 != sha256:
                raise ValueError(f"SAE {name!r} has other weights in the engine than in the API server.")
        reads = _ReadColumns(loaded)
        rules = tuple(_rule(rule, reads, loaded, prompt_len) for rule in program.rules)
        readout = _readout(program, reads, prompt_len)
        return cls(
            saes=_edits(program, loaded, prompt_len),
            num_edits=len(program.edits),
            reads=reads.columns(),
            num_reads=reads.num,
            rules=rules,
            readout=readout,
            itemised=program.itemised,
            reports_steps=program.reports_steps,
        )

    @property
    def num_items(self) -> int:
        """Number of items per token: edits that are shown, if they are made."""
        return self.num_edits if self.itemised else 0


def _with_rows(program: SteeringProgram, loaded: Mapping[str, LoadedWeights]) -> SteeringProgram:
    """Replace each vector by its row of a bank, so that the engine knows features alone."""
    weights = dict(program.saes)
    rows: dict[str, tuple[str, int]] = {}
    for name in {edit.sae for edit in program.edits if edit.vector is not None}:
        # by name and hash, as the vector may have been deleted and its name given to another since the program was made
        vector = loaded.get(vector_key(name, weights[name]))
        if vector is None or vector.row is None:
            raise ValueError(f"{name!r} is not in the engine as it was when the request began.")
        rows[name] = vector.row
    edits = [
        replace(edit, sae=rows[edit.sae][0], index=rows[edit.sae][1]) if edit.sae in rows else edit
        for edit in program.edits
    ]
    return replace(program, edits=tuple(edits), saes=tuple(pair for pair in program.saes if pair[0] not in rows))


def _checked(sae: str, index: int, loaded: Mapping[str, LoadedWeights]) -> int:
    if not 0 <= index < loaded[sae].d_sae:
        raise ValueError(f"SAE {sae!r} has no feature {index}.")
    return index


def _edits(program: SteeringProgram, loaded: Mapping[str, LoadedWeights], prompt_len: int) -> dict[str, EditTable]:
    by_sae: dict[str, list[tuple[int, ActivationUpdate, int, int, bool, int, int]]] = {}
    for number, edit in enumerate(program.edits):
        feature, move = _checked(edit.sae, edit.index, loaded), UPDATES[edit.op](edit.value)
        if edit.rule is not None and not 0 <= edit.rule < len(program.rules):
            raise ValueError(f"There is no rule {edit.rule}.")
        rule = -1 if edit.rule is None else edit.rule
        by_sae.setdefault(edit.sae, []).extend(
            (feature, move, start, end, edit.special, number, rule)
            for start, end in resolve_ranges(edit.tokens, prompt_len)
        )
    return {sae: _edit_columns(edits) for sae, edits in by_sae.items() if edits}


def _edit_columns(edits: Sequence[tuple[int, ActivationUpdate, int, int, bool, int, int]]) -> EditTable:
    feature, moves, start, end, special, number, rule = zip(*edits, strict=True)
    return EditTable(
        feature=np.array(feature, np.int64),
        moves=np.array(moves, np.float32),
        start=np.array(start, np.int64),
        end=np.array(end, np.int64),
        special=np.array(special, np.bool_),
        edit=np.array(number, np.int64),
        rule=np.array(rule, np.int64),
    )


class _ReadColumns:
    """Collects the reads of a program, numbered as they are added."""

    def __init__(self, loaded: Mapping[str, LoadedWeights]) -> None:
        self._loaded = loaded
        self._by_sae: dict[str, list[tuple[int, int, int, bool, int]]] = {}
        self.num = 0

    def add(self, sae: str, index: int, ranges: Ranges, special: bool) -> int:
        feature, number = _checked(sae, index, self._loaded), self.num
        self.num += 1
        self._by_sae.setdefault(sae, []).extend((feature, start, end, special, number) for start, end in ranges)
        return number

    def columns(self) -> dict[str, ReadTable]:
        columns = {}
        for sae, reads in self._by_sae.items():
            if reads:
                feature, start, end, special, number = np.array(reads, np.int64).T
                columns[sae] = ReadTable(feature, start, end, special.astype(np.bool_), number)
        return columns


def _rule(rule: RuleSpec, reads: _ReadColumns, loaded: Mapping[str, LoadedWeights], prompt_len: int) -> CompiledRule:
    ranges = resolve_ranges(rule.tokens, prompt_len)

    def read(comparison: ComparisonSpec) -> int:
        return reads.add(comparison.sae, comparison.index, ranges, rule.special)

    return CompiledRule(
        form=rule.form,
        reads=np.array([read(comparison) for comparison in rule.comparisons], np.int64),
        bounds=np.array([comparison.bound for comparison in rule.comparisons], np.float32),
        above=np.array([comparison.above for comparison in rule.comparisons], np.bool_),
        ranges=ranges,
        special=rule.special,
        lasting=rule.lasting,
        aborts=rule.aborts,
        site_index=max(loaded[comparison.sae].site_index for comparison in rule.comparisons),
    )


def _readout(program: SteeringProgram, reads: _ReadColumns, prompt_len: int) -> CompiledReadout | None:
    readout = program.readout
    if readout is None:
        return None
    ranges = resolve_ranges(readout.tokens, prompt_len)
    numbers = [reads.add(sae, index, ranges, readout.special) for sae, index in readout.features]
    return CompiledReadout(np.array(numbers, np.int64), readout.saes, readout.top_k, ranges, readout.special)
