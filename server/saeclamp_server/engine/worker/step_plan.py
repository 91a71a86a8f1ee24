"""
Worker process: the step plan, which pairs the tokens of a step with the edits and reads of their requests. Host-side and
free of vLLM, so it tests on a laptop.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from saeclamp_server.engine.worker.compiled_program import CompiledProgram, EditTable, ReadTable

Columns = TypeVar("Columns", EditTable, ReadTable)


class RequestSlice(NamedTuple):
    """The tokens of one steered request in a step: consecutive rows of the batch, consecutive positions of the request."""

    program: CompiledProgram
    first_row: int
    """Row of the first token in the step's batch."""
    num_tokens: int
    position: int
    """Absolute position of the first token in its request."""
    prompt_len: int
    counted: int
    """Positions below this were counted in an earlier step; they are computed again after a preemption."""
    first_slot: int
    """Slot of the program's first edit in the edit stats; the others follow."""
    first_rule_slot: int = 0
    """Slot of the program's first rule in the rule state; the others follow."""


class SliceColumns(NamedTuple):
    """The fields of many slices and their places in the layout, one array element per slice."""

    first_row: NDArray[np.int64]
    num_tokens: NDArray[np.int64]
    position: NDArray[np.int64]
    prompt_len: NDArray[np.int64]
    counted: NDArray[np.int64]
    first_slot: NDArray[np.int64]
    first_rule_slot: NDArray[np.int64]
    first_act: NDArray[np.int64]
    """Place of the slice's first activation in the step's; they are (num_tokens, num_reads), row after row."""
    first_verdict: NDArray[np.int64]
    """Place of its first verdict; they are (num_rules, num_tokens), row after row."""
    num_reads: NDArray[np.int64]
    first_item: NDArray[np.int64]
    """Place of its first item, an edit that is shown; they are (num_tokens, num_items), row after row."""
    num_items: NDArray[np.int64]


class EditPairs(NamedTuple):
    """One SAE's (token, edit) pairs of a step, one array element per pair."""

    batch_row: NDArray[np.int64]
    """Row of the step's token batch."""
    feature: NDArray[np.int64]
    moves: NDArray[np.float32]
    """(num_pairs, 4): one `clamping.ActivationUpdate` per row."""
    special: NDArray[np.bool_]
    """True if the token is touched even if it is a special one."""
    slot: NDArray[np.int64]
    """Slot of the edit in the edit stats."""
    prompt: NDArray[np.bool_]
    """True for a prompt position that was not counted before."""
    generated: NDArray[np.bool_]
    """True for a generated position that was not counted before."""
    verdict: NDArray[np.int64]
    """Place of the verdict on which the pair depends; 0: on none."""
    item: NDArray[np.int64]
    """Place of the pair's item; 0: it is not shown."""


def no_pairs() -> EditPairs:
    """Make the empty pairs of an SAE without edits in the step."""
    integers, booleans = np.zeros(0, np.int64), np.zeros(0, np.bool_)
    moves = np.zeros((0, 4), np.float32)
    return EditPairs(integers, integers, moves, booleans, integers, booleans, booleans, integers, integers)


class ReadPairs(NamedTuple):
    """One SAE's (token, feature) pairs of a step that are read, one array element per pair."""

    batch_row: NDArray[np.int64]
    feature: NDArray[np.int64]
    special: NDArray[np.bool_]
    """True if the token is read even if it is a special one."""
    act: NDArray[np.int64]
    """Place of the activation in the step outputs."""


class StepLayout:
    """
    Places of a step's activations, verdicts and items in the three flat tensors of the step outputs.

    Place 0 of each is reserved: no activation, the verdict that always holds, and the item of edits that are not shown. So
    every pair can name a place, and the op needs no branch for those without one.
    """

    def __init__(self, slices: Sequence[RequestSlice]) -> None:
        num_tokens = np.array([req_slice.num_tokens for req_slice in slices], np.int64)
        self.num_reads = np.array([req_slice.program.num_reads for req_slice in slices], np.int64)
        self.num_items = np.array([req_slice.program.num_items for req_slice in slices], np.int64)
        num_rules = np.array([len(req_slice.program.rules) for req_slice in slices], np.int64)
        self.first_act, self.num_acts = _laid_out(num_tokens * self.num_reads)
        self.first_verdict, self.num_verdicts = _laid_out(num_tokens * num_rules)
        self.first_item, self.all_items = _laid_out(num_tokens * self.num_items)


def _laid_out(sizes: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Lay parts of these sizes one after the other behind place 0; return where each begins, and the size of the whole."""
    ends = 1 + np.cumsum(sizes)
    return ends - sizes, int(ends[-1]) if len(sizes) else 1


def slice_columns(slices: Sequence[RequestSlice], layout: StepLayout, which: Sequence[int]) -> SliceColumns:
    """Return the columns of some of the slices, by their numbers."""
    columns = np.array([slices[number][1:] for number in which], np.int64).reshape(len(which), 7).T
    chosen = np.array(which, np.int64)
    laid = (layout.first_act, layout.first_verdict, layout.num_reads, layout.first_item, layout.num_items)
    return SliceColumns._make([*columns, *(column[chosen] for column in laid)])


def pairs_by_sae(slices: Iterable[RequestSlice], layout: StepLayout | None = None) -> dict[str, EditPairs]:
    """Spread each request's edits over its tokens, by SAE; SAEs without a pair are left out."""
    slices = [*slices]
    layout = layout or StepLayout(slices)
    pairs = {
        sae: _edit_pairs(slice_columns(slices, layout, which), parts)
        for sae, (which, parts) in _by_sae(slices, [req_slice.program.saes for req_slice in slices]).items()
    }
    return {sae: sae_pairs for sae, sae_pairs in pairs.items() if sae_pairs.feature.size}


def reads_by_sae(slices: Sequence[RequestSlice], layout: StepLayout) -> dict[str, ReadPairs]:
    """Spread each request's reads over its tokens, by SAE; SAEs without a pair are left out."""
    reads = {
        sae: _read_pairs(slice_columns(slices, layout, which), parts)
        for sae, (which, parts) in _by_sae(slices, [req_slice.program.reads for req_slice in slices]).items()
    }
    return {sae: pairs for sae, pairs in reads.items() if pairs.feature.size}


def _by_sae(
    slices: Sequence[RequestSlice], columns: Sequence[Mapping[str, Columns]]
) -> dict[str, tuple[list[int], list[Columns]]]:
    by_sae: dict[str, tuple[list[int], list[Columns]]] = {}
    for number in range(len(slices)):
        for sae, part in columns[number].items():
            which, parts = by_sae.setdefault(sae, ([], []))
            which.append(number)
            parts.append(part)
    return by_sae


def _edit_pairs(req_slice: SliceColumns, parts: Sequence[EditTable]) -> EditPairs:
    edits = EditTable._make(np.concatenate(column) for column in zip(*parts, strict=True))
    of, token, edit = _spread(req_slice, [len(part.feature) for part in parts], edits.start, edits.end)
    positions = req_slice.position[of] + token
    generated = positions >= req_slice.prompt_len[of]
    special, rule = edits.special[edit], edits.rule[edit]
    new = positions >= req_slice.counted[of]
    pairs = EditPairs(
        batch_row=req_slice.first_row[of] + token,
        feature=edits.feature[edit],
        moves=edits.moves[edit],
        special=special,
        slot=req_slice.first_slot[of] + edits.edit[edit],
        prompt=new & ~generated,
        generated=new & generated,
        verdict=np.where(rule < 0, 0, req_slice.first_verdict[of] + rule * req_slice.num_tokens[of] + token),
        item=np.where(
            req_slice.num_items[of] == 0,
            0,
            req_slice.first_item[of] + token * req_slice.num_items[of] + edits.edit[edit],
        ),
    )
    # position 0 is the attention sink. Special tokens are left to the device: under asynchronous scheduling the host does
    # not know yet which token was sampled last
    touched = (positions > 0) | special
    return EditPairs._make(column[touched] for column in pairs)


def _read_pairs(req_slice: SliceColumns, parts: Sequence[ReadTable]) -> ReadPairs:
    reads = ReadTable._make(np.concatenate(column) for column in zip(*parts, strict=True))
    of, token, read = _spread(req_slice, [len(part.feature) for part in parts], reads.start, reads.end)
    pairs = ReadPairs(
        batch_row=req_slice.first_row[of] + token,
        feature=reads.feature[read],
        special=reads.special[read],
        act=req_slice.first_act[of] + token * req_slice.num_reads[of] + reads.read[read],
    )
    touched = (req_slice.position[of] + token > 0) | pairs.special
    return ReadPairs._make(column[touched] for column in pairs)


def _spread(
    req_slice: SliceColumns, num_entries: Sequence[int], start: NDArray[np.int64], end: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """
    Pair each slice's entries with those of its tokens that are in the entry's range.

    All slices at once rather than one after the other: a decode step has hundreds of them with a token each.

    num_entries: per slice
    start, end:  (sum of num_entries,) absolute positions
    returns:     per pair: the slice, the token within it, and the entry
    """
    # ranges are cut to the slice before they are spread, as all pairs of tokens and ranges would take too much memory
    of_entry = np.repeat(np.arange(len(num_entries)), num_entries)
    first = np.maximum(start, req_slice.position[of_entry])
    last = np.minimum(end, (req_slice.position + req_slice.num_tokens)[of_entry])
    num_tokens = np.maximum(last - first, 0)
    entry = np.repeat(np.arange(len(of_entry)), num_tokens)
    of = of_entry[entry]
    return of, first[entry] - req_slice.position[of] + count_within(num_tokens), entry


def count_within(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count 0, 1, ... within each group: sizes 2, 3 give 0 1 0 1 2."""
    starts = np.cumsum(sizes) - sizes
    counts: NDArray[np.int64] = np.arange(sizes.sum()) - np.repeat(starts, sizes)
    return counts
