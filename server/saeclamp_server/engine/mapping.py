"""Which edits each token of a step gets. Host-side and free of vLLM, so it tests on a laptop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saeclamp_server.program import SteeringProgram

SCOPES = {"all": 0, "prompt": 1, "generated": 2}


class Place(NamedTuple):
    """Where one SAE's features are in this engine."""

    layer: int
    first_row: int
    """Of the SAE's features in that layer's FeatureRows."""
    d_sae: int
    sha256: str
    """Of the weights."""


class SiteEdits(NamedTuple):
    """A program's edits at one site, one array element per edit."""

    row: NDArray[np.int64]
    """Row of the site's FeatureRows."""
    target: NDArray[np.float32]
    keep: NDArray[np.float32]
    """1 for add, 0 for clamp."""
    scope: NDArray[np.int64]
    edit: NDArray[np.int64]
    """Which edit of the program this is."""


@dataclass(frozen=True)
class PlacedProgram:
    """A program with its features found at the sites of this engine."""

    sites: Mapping[int, SiteEdits]
    """By layer."""
    num_edits: int

    @classmethod
    def place(cls, program: SteeringProgram, places: Mapping[str, Place]) -> PlacedProgram:
        """
        Find every edit's layer and row; `places` is by SAE name.

        Raises KeyError for an SAE that this engine does not hold, ValueError for other weights than were resolved against
        or an index outside the SAE.
        """
        for name, sha256 in program.saes:
            if places[name].sha256 != sha256:
                raise ValueError(f"SAE {name!r} has other weights in the engine than in the API server.")
        by_layer: dict[int, list[tuple[int, float, float, int, int]]] = {}
        for number, edit in enumerate(program.edits):
            place = places[edit.sae]
            if not 0 <= edit.index < place.d_sae:
                raise ValueError(f"SAE {edit.sae!r} has no feature {edit.index}.")
            keep = {"clamp": 0.0, "add": 1.0}[edit.op]
            by_layer.setdefault(place.layer, []).append(
                (place.first_row + edit.index, edit.value, keep, SCOPES[edit.tokens], number)
            )
        return cls({layer: _columns(edits) for layer, edits in by_layer.items()}, len(program.edits))


def _columns(edits: Sequence[tuple[int, float, float, int, int]]) -> SiteEdits:
    row, target, keep, scope, number = zip(*edits, strict=True)
    return SiteEdits(
        row=np.array(row, np.int64),
        target=np.array(target, np.float32),
        keep=np.array(keep, np.float32),
        scope=np.array(scope, np.int64),
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


class SitePairs(NamedTuple):
    """One site's (token, edit) pairs of a step, one array element per pair."""

    batch_row: NDArray[np.int64]
    """Row of the step's token batch."""
    row: NDArray[np.int64]
    """Row of the site's FeatureRows."""
    target: NDArray[np.float32]
    keep: NDArray[np.float32]
    slot: NDArray[np.int64]
    """Ledger slot."""
    prompt: NDArray[np.bool_]
    """Is this a prompt position that was not counted before?"""
    generated: NDArray[np.bool_]
    """Is this a generated position that was not counted before?"""


def pairs_by_layer(spans: Iterable[Span]) -> dict[int, SitePairs]:
    """Spread each request's edits over its tokens; layers where nothing is touched are left out."""
    by_layer: dict[int, list[tuple[Span, SiteEdits]]] = {}
    for span in spans:
        for layer, edits in span.program.sites.items():
            by_layer.setdefault(layer, []).append((span, edits))
    pairs = {layer: _pairs(parts) for layer, parts in by_layer.items()}
    return {layer: site_pairs for layer, site_pairs in pairs.items() if site_pairs.row.size}


def _pairs(parts: Sequence[tuple[Span, SiteEdits]]) -> SitePairs:
    """
    Cross each span's tokens with its edits and keep the pairs in scope.

    All spans at once rather than one after the other: a decode step has hundreds of them with a token each.
    """
    columns = [(*span[1:], len(edits.row)) for span, edits in parts]
    first_row, num_tokens, position, prompt_len, counted, first_slot, num_edits = np.array(columns, np.int64).T
    edits = SiteEdits(*(np.concatenate(column) for column in zip(*(edits for _, edits in parts), strict=True)))

    num_pairs = num_tokens * num_edits
    span = np.repeat(np.arange(len(parts)), num_pairs)
    token, nth_edit = np.divmod(_count_within(num_pairs), num_edits[span])
    edit = (np.cumsum(num_edits) - num_edits)[span] + nth_edit

    positions = position[span] + token
    generated = positions >= prompt_len[span]
    scope = edits.scope[edit]
    in_scope = (scope == SCOPES["all"]) | ((scope == SCOPES["generated"]) == generated)
    new = positions >= counted[span]
    pairs = SitePairs(
        batch_row=first_row[span] + token,
        row=edits.row[edit],
        target=edits.target[edit],
        keep=edits.keep[edit],
        slot=first_slot[span] + edits.edit[edit],
        prompt=new & ~generated,
        generated=new & generated,
    )
    touched = in_scope & (positions > 0)  # position 0 is the attention sink
    return SitePairs(*(column[touched] for column in pairs))


def _count_within(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count 0, 1, ... within each group: sizes 2, 3 give 0 1 0 1 2."""
    starts = np.cumsum(sizes) - sizes
    counts: NDArray[np.int64] = np.arange(sizes.sum()) - np.repeat(starts, sizes)
    return counts
