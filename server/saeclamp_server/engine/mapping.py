"""Which edits each token of a step gets. Host-side and free of vLLM, so it tests on a laptop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saeclamp_server.program import SteeringProgram

SCOPES = {"all": 0, "prompt": 1, "generated": 2}


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
    def place(cls, program: SteeringProgram, places: Mapping[str, tuple[int, int, int, str]]) -> PlacedProgram:
        """
        Find every edit's layer and row.

        places: SAE name -> (layer, first row at that layer's site, d_sae, sha256 of the weights)

        Raises KeyError for an SAE that this engine does not hold, ValueError for other weights than were resolved against
        or an index outside the SAE.
        """
        for name, sha256 in program.saes:
            if places[name][3] != sha256:
                raise ValueError(f"SAE {name!r} has other weights in the engine than in the API server.")
        by_layer: dict[int, list[tuple[int, float, float, int, int]]] = {}
        for number, edit in enumerate(program.edits):
            layer, first_row, d_sae, _ = places[edit.sae]
            if not 0 <= edit.index < d_sae:
                raise ValueError(f"SAE {edit.sae!r} has no feature {edit.index}.")
            keep = {"clamp": 0.0, "add": 1.0}[edit.op]
            by_layer.setdefault(layer, []).append(
                (first_row + edit.index, edit.value, keep, SCOPES[edit.tokens], number)
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

    tokens: NDArray[np.int64]
    """(num_tokens,) distinct rows of the batch that are touched, ascending."""
    token: NDArray[np.int64]
    """(num_pairs,) index into `tokens`."""
    row: NDArray[np.int64]
    target: NDArray[np.float32]
    keep: NDArray[np.float32]
    slot: NDArray[np.int64]
    """Ledger slot."""
    prompt: NDArray[np.float32]
    """1 where a prompt position is to be counted."""
    generated: NDArray[np.float32]
    """1 where a generated position is to be counted."""


def pairs_by_layer(spans: Iterable[Span]) -> dict[int, SitePairs]:
    """Spread each request's edits over its tokens. Position 0, the attention sink, is never touched."""
    found: dict[int, list[tuple[NDArray[np.int64], Span, SiteEdits, NDArray[np.int64], NDArray[np.int64]]]] = {}
    for span in spans:
        positions = np.arange(span.position, span.position + span.num_tokens)
        for layer, edits in span.program.sites.items():
            token, edit = np.nonzero(_touched(positions, span.prompt_len, edits.scope))
            if token.size:
                found.setdefault(layer, []).append((positions, span, edits, token, edit))
    return {layer: _join(parts) for layer, parts in found.items()}


def _touched(positions: NDArray[np.int64], prompt_len: int, scope: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(num_tokens, num_edits): is this position in this edit's scope?"""
    phase = np.where(positions >= prompt_len, SCOPES["generated"], SCOPES["prompt"])
    in_scope = (scope[None, :] == SCOPES["all"]) | (scope[None, :] == phase[:, None])
    touched: NDArray[np.bool_] = in_scope & (positions > 0)[:, None]
    return touched


def _join(
    parts: Sequence[tuple[NDArray[np.int64], Span, SiteEdits, NDArray[np.int64], NDArray[np.int64]]],
) -> SitePairs:
    rows = np.concatenate([span.first_row + token for _, span, _, token, _ in parts])
    counts = [
        ((positions[token] >= span.counted), (positions[token] >= span.prompt_len))
        for positions, span, _, token, _ in parts
    ]
    new = np.concatenate([count for count, _ in counts])
    generated = np.concatenate([phase for _, phase in counts])
    tokens, token = np.unique(rows, return_inverse=True)
    return SitePairs(
        tokens=tokens,
        token=token.astype(np.int64),
        row=np.concatenate([edits.row[edit] for _, _, edits, _, edit in parts]),
        target=np.concatenate([edits.target[edit] for _, _, edits, _, edit in parts]),
        keep=np.concatenate([edits.keep[edit] for _, _, edits, _, edit in parts]),
        slot=np.concatenate([span.first_slot + edits.edit[edit] for _, span, edits, _, edit in parts]),
        prompt=(new & ~generated).astype(np.float32),
        generated=(new & generated).astype(np.float32),
    )
