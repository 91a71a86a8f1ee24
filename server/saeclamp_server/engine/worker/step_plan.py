"""
Worker process: what each token of a step gets: edits, looks, conditions. Host-side and free of vLLM, so it tests on
a laptop.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from saeclamp_server.engine.worker.compiled_program import PlacedProgram, SAEEdits, SAELooks

Columns = TypeVar("Columns", SAEEdits, SAELooks)


class Span(NamedTuple):
    """The tokens of one steered request in a step: consecutive rows of the batch, consecutive positions of the request."""

    program: PlacedProgram
    first_row: int
    """Row of the step's token batch."""
    num_tokens: int
    position: int
    """Absolute position of the first token in its request."""
    prompt_len: int
    counted: int
    """Positions below this were counted in an earlier step (they are recomputed after a preemption)."""
    first_slot: int
    """Ledger slot of the program's first edit; the others follow."""
    first_rule_slot: int = 0
    """Slot, among the firings, of the program's first rule; the others follow."""


class Numbers(NamedTuple):
    """The same of many spans, one array element a span."""

    first_row: NDArray[np.int64]
    num_tokens: NDArray[np.int64]
    position: NDArray[np.int64]
    prompt_len: NDArray[np.int64]
    counted: NDArray[np.int64]
    first_slot: NDArray[np.int64]
    first_rule_slot: NDArray[np.int64]
    first_act: NDArray[np.int64]
    """Where the span's activations begin among those of the step: (num_tokens, num_looks), row after row."""
    first_verdict: NDArray[np.int64]
    """Where its verdicts begin: (num_rules, num_tokens), row after row."""
    num_looks: NDArray[np.int64]
    first_item: NDArray[np.int64]
    """Where its items, edits that are shown, begin: (num_tokens, num_items), row after row."""
    num_items: NDArray[np.int64]


class SAEPairs(NamedTuple):
    """One SAE's (token, edit) pairs of a step, one array element per pair."""

    batch_row: NDArray[np.int64]
    """Row of the step's token batch."""
    feature: NDArray[np.int64]
    moves: NDArray[np.float32]
    """(num_pairs, 4): a `Move` a row."""
    special: NDArray[np.bool_]
    """Is the token touched even if it is a special one?"""
    slot: NDArray[np.int64]
    """Ledger slot."""
    prompt: NDArray[np.bool_]
    """Is this a prompt position that was not counted before?"""
    generated: NDArray[np.bool_]
    """Is this a generated position that was not counted before?"""
    verdict: NDArray[np.int64]
    """Place of the verdict on which it depends; 0: on none."""
    item: NDArray[np.int64]
    """Place where it is shown; 0: nowhere."""


def no_pairs() -> SAEPairs:
    """Pairs of an SAE of which nothing is moved."""
    integers, booleans = np.zeros(0, np.int64), np.zeros(0, np.bool_)
    moves = np.zeros((0, 4), np.float32)
    return SAEPairs(integers, integers, moves, booleans, integers, booleans, booleans, integers, integers)


class LookPairs(NamedTuple):
    """One SAE's (token, feature) pairs of a step that are looked at, one array element per pair."""

    batch_row: NDArray[np.int64]
    feature: NDArray[np.int64]
    special: NDArray[np.bool_]
    """Is the token looked at even if it is a special one?"""
    act: NDArray[np.int64]
    """Place of the activation."""


class Places:
    """
    Where a step's activations, verdicts and items lie.

    Place 0 of each is taken: it is of no activation, of the verdict `always`, and of edits that are not shown.
    """

    def __init__(self, spans: Sequence[Span]) -> None:
        num_tokens = np.array([span.num_tokens for span in spans], np.int64)
        self.num_looks = np.array([span.program.num_looks for span in spans], np.int64)
        self.num_items = np.array([span.program.num_items for span in spans], np.int64)
        num_rules = np.array([len(span.program.rules) for span in spans], np.int64)
        self.first_act, self.num_acts = _laid_out(num_tokens * self.num_looks)
        self.first_verdict, self.num_verdicts = _laid_out(num_tokens * num_rules)
        self.first_item, self.all_items = _laid_out(num_tokens * self.num_items)


def _laid_out(sizes: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Lay parts of these sizes one after the other behind place 0: where each begins, and the size of the whole."""
    ends = 1 + np.cumsum(sizes)
    return ends - sizes, int(ends[-1]) if len(sizes) else 1


def numbers(spans: Sequence[Span], places: Places, which: Sequence[int]) -> Numbers:
    """Columns of some of the spans."""
    columns = np.array([spans[number][1:] for number in which], np.int64).reshape(len(which), 7).T
    chosen = np.array(which, np.int64)
    laid = (places.first_act, places.first_verdict, places.num_looks, places.first_item, places.num_items)
    return Numbers._make([*columns, *(column[chosen] for column in laid)])


def pairs_by_sae(spans: Iterable[Span], places: Places | None = None) -> dict[str, SAEPairs]:
    """Spread each request's edits over its tokens; SAEs of which nothing is touched are left out."""
    spans = [*spans]
    places = places or Places(spans)
    pairs = {
        sae: _edit_pairs(numbers(spans, places, which), parts)
        for sae, (which, parts) in _by_sae(spans, [span.program.saes for span in spans]).items()
    }
    return {sae: sae_pairs for sae, sae_pairs in pairs.items() if sae_pairs.feature.size}


def looks_by_sae(spans: Sequence[Span], places: Places) -> dict[str, LookPairs]:
    """Spread what each request looks at over its tokens; SAEs of which nothing is looked at are left out."""
    looks = {
        sae: _look_pairs(numbers(spans, places, which), parts)
        for sae, (which, parts) in _by_sae(spans, [span.program.looks for span in spans]).items()
    }
    return {sae: pairs for sae, pairs in looks.items() if pairs.feature.size}


def _by_sae(
    spans: Sequence[Span], columns: Sequence[Mapping[str, Columns]]
) -> dict[str, tuple[list[int], list[Columns]]]:
    by_sae: dict[str, tuple[list[int], list[Columns]]] = {}
    for number in range(len(spans)):
        for sae, part in columns[number].items():
            which, parts = by_sae.setdefault(sae, ([], []))
            which.append(number)
            parts.append(part)
    return by_sae


def _edit_pairs(span: Numbers, parts: Sequence[SAEEdits]) -> SAEPairs:
    edits = SAEEdits._make(np.concatenate(column) for column in zip(*parts, strict=True))
    of, token, edit = _spread(span, [len(part.feature) for part in parts], edits.start, edits.end)
    positions = span.position[of] + token
    generated = positions >= span.prompt_len[of]
    special, rule = edits.special[edit], edits.rule[edit]
    new = positions >= span.counted[of]
    pairs = SAEPairs(
        batch_row=span.first_row[of] + token,
        feature=edits.feature[edit],
        moves=edits.moves[edit],
        special=special,
        slot=span.first_slot[of] + edits.edit[edit],
        prompt=new & ~generated,
        generated=new & generated,
        verdict=np.where(rule < 0, 0, span.first_verdict[of] + rule * span.num_tokens[of] + token),
        item=np.where(span.num_items[of] == 0, 0, span.first_item[of] + token * span.num_items[of] + edits.edit[edit]),
    )
    touched = (positions > 0) | special  # position 0 is the attention sink
    return SAEPairs._make(column[touched] for column in pairs)


def _look_pairs(span: Numbers, parts: Sequence[SAELooks]) -> LookPairs:
    looks = SAELooks._make(np.concatenate(column) for column in zip(*parts, strict=True))
    of, token, look = _spread(span, [len(part.feature) for part in parts], looks.start, looks.end)
    pairs = LookPairs(
        batch_row=span.first_row[of] + token,
        feature=looks.feature[look],
        special=looks.special[look],
        act=span.first_act[of] + token * span.num_looks[of] + looks.look[look],
    )
    touched = (span.position[of] + token > 0) | pairs.special
    return LookPairs._make(column[touched] for column in pairs)


def _spread(
    span: Numbers, num_entries: Sequence[int], start: NDArray[np.int64], end: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """
    Pair each span's entries with those of its tokens that are in the entry's range: the span, the token within it and the
    entry of each pair.

    start, end: (num_entries of all,) absolute positions
    All spans at once rather than one after the other: a decode step has hundreds of them with a token each.
    """
    of_entry = np.repeat(np.arange(len(num_entries)), num_entries)
    first = np.maximum(start, span.position[of_entry])
    last = np.minimum(end, (span.position + span.num_tokens)[of_entry])
    num_tokens = np.maximum(last - first, 0)
    entry = np.repeat(np.arange(len(of_entry)), num_tokens)
    of = of_entry[entry]
    return of, first[entry] - span.position[of] + count_within(num_tokens), entry


def count_within(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count 0, 1, ... within each group: sizes 2, 3 give 0 1 0 1 2."""
    starts = np.cumsum(sizes) - sizes
    counts: NDArray[np.int64] = np.arange(sizes.sum()) - np.repeat(starts, sizes)
    return counts
