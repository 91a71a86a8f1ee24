"""Which edits each token of a step gets. Host-side and free of vLLM, so it tests on a laptop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saeclamp_saes.clamping import MOVES, Move
from saeclamp_server.program import SteeringProgram
from saeclamp_server.scopes import resolved


class Held(NamedTuple):
    """An SAE that this engine holds."""

    d_sae: int
    sha256: str
    """Of the weights and how they are read."""


class SAEEdits(NamedTuple):
    """A program's edits of one SAE's features, one array element per edit and range of positions."""

    feature: NDArray[np.int64]
    moves: NDArray[np.float32]
    """(num_edits, 4): a `Move` a row."""
    start: NDArray[np.int64]
    """First position."""
    end: NDArray[np.int64]
    """Position after the last one."""
    special: NDArray[np.bool_]
    """Are special tokens and position 0 touched too?"""
    edit: NDArray[np.int64]
    """Which edit of the program this is."""


@dataclass(frozen=True)
class PlacedProgram:
    """A program checked against the SAEs of this engine."""

    saes: Mapping[str, SAEEdits]
    """By the SAE's name."""
    num_edits: int

    @classmethod
    def place(cls, program: SteeringProgram, held: Mapping[str, Held], prompt_len: int) -> PlacedProgram:
        """
        Sort the edits by SAE, and find their positions in a request with a prompt of that length; `held` is by name.

        Raises KeyError for an SAE that this engine does not hold, ValueError for other weights than were resolved against
        or an index outside the SAE.
        """
        for name, sha256 in program.saes:
            if held[name].sha256 != sha256:
                raise ValueError(f"SAE {name!r} has other weights in the engine than in the API server.")
        by_sae: dict[str, list[tuple[int, Move, int, int, bool, int]]] = {}
        for number, edit in enumerate(program.edits):
            if not 0 <= edit.index < held[edit.sae].d_sae:
                raise ValueError(f"SAE {edit.sae!r} has no feature {edit.index}.")
            move = MOVES[edit.op](edit.value)
            by_sae.setdefault(edit.sae, []).extend(
                (edit.index, move, start, end, edit.special, number) for start, end in resolved(edit.tokens, prompt_len)
            )
        return cls({sae: _columns(edits) for sae, edits in by_sae.items() if edits}, len(program.edits))


def _columns(edits: Sequence[tuple[int, Move, int, int, bool, int]]) -> SAEEdits:
    feature, moves, start, end, special, number = zip(*edits, strict=True)
    return SAEEdits(
        feature=np.array(feature, np.int64),
        moves=np.array(moves, np.float32),
        start=np.array(start, np.int64),
        end=np.array(end, np.int64),
        special=np.array(special, np.bool_),
        edit=np.array(number, np.int64),
    )


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


def pairs_by_sae(spans: Iterable[Span]) -> dict[str, SAEPairs]:
    """Spread each request's edits over its tokens; SAEs of which nothing is touched are left out."""
    by_sae: dict[str, list[tuple[Span, SAEEdits]]] = {}
    for span in spans:
        for sae, edits in span.program.saes.items():
            by_sae.setdefault(sae, []).append((span, edits))
    pairs = {sae: _pairs(parts) for sae, parts in by_sae.items()}
    return {sae: sae_pairs for sae, sae_pairs in pairs.items() if sae_pairs.feature.size}


def _pairs(parts: Sequence[tuple[Span, SAEEdits]]) -> SAEPairs:
    """
    Cross each span's tokens with its edits and keep the pairs in scope.

    All spans at once rather than one after the other: a decode step has hundreds of them with a token each.
    """
    columns = [(*span[1:], len(edits.feature)) for span, edits in parts]
    first_row, num_tokens, position, prompt_len, counted, first_slot, num_edits = np.array(columns, np.int64).T
    edits = SAEEdits(*(np.concatenate(column) for column in zip(*(edits for _, edits in parts), strict=True)))

    num_pairs = num_tokens * num_edits
    span = np.repeat(np.arange(len(parts)), num_pairs)
    token, nth_edit = np.divmod(_count_within(num_pairs), num_edits[span])
    edit = (np.cumsum(num_edits) - num_edits)[span] + nth_edit

    positions = position[span] + token
    generated = positions >= prompt_len[span]
    special = edits.special[edit]
    in_scope = (positions >= edits.start[edit]) & (positions < edits.end[edit])
    new = positions >= counted[span]
    pairs = SAEPairs(
        batch_row=first_row[span] + token,
        feature=edits.feature[edit],
        moves=edits.moves[edit],
        special=special,
        slot=first_slot[span] + edits.edit[edit],
        prompt=new & ~generated,
        generated=new & generated,
    )
    touched = in_scope & ((positions > 0) | special)  # position 0 is the attention sink
    return SAEPairs(*(column[touched] for column in pairs))


def _count_within(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count 0, 1, ... within each group: sizes 2, 3 give 0 1 0 1 2."""
    starts = np.cumsum(sizes) - sizes
    counts: NDArray[np.int64] = np.arange(sizes.sum()) - np.repeat(starts, sizes)
    return counts
