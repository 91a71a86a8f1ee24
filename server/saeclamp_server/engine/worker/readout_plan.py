"""Worker process: which tokens of a step a readout shows. Host-side, because it is the host that shows them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saeclamp_server.engine.worker.compiled_program import CompiledProgram


class RequestSlice(NamedTuple):
    """The tokens of one request in a step: consecutive rows of the batch, consecutive positions of the request."""

    program: CompiledProgram
    number: int
    """Number of the program in the tables."""
    first_row: int
    """Row of the first token in the step's batch."""
    num_tokens: int
    position: int
    """Absolute position of the first token in its request."""


class TopFeatureRows(NamedTuple):
    """Tokens whose strongest features of one SAE are shown."""

    batch_row: NDArray[np.int64]
    special: NDArray[np.bool_]
    top_k: int
    """Largest `top_k` of their requests; each is cut to its own when it is read."""


def plan_shown(req_slice: RequestSlice) -> NDArray[np.bool_]:
    """Tell for each token of a slice whether it is in its readout's ranges: (num_tokens,) bool."""
    readout = req_slice.program.readout
    positions = np.arange(req_slice.position, req_slice.position + req_slice.num_tokens)
    inside = np.zeros(len(positions), np.bool_)
    if readout is None:
        return inside
    for start, end in readout.ranges:
        inside |= (positions >= start) & (positions < end)
    # position 0 is a sink
    return inside & ((positions > 0) | readout.special)


def plan_top_features(slices: Iterable[RequestSlice]) -> dict[str, TopFeatureRows]:
    """Find the tokens of a step whose strongest features are shown, by SAE."""
    found: dict[str, list[tuple[NDArray[np.int64], bool, int]]] = {}
    for req_slice in slices:
        readout = req_slice.program.readout
        if readout is None or not readout.top_k:
            continue
        rows = req_slice.first_row + np.flatnonzero(plan_shown(req_slice))
        for sae in readout.saes:
            if len(rows):
                found.setdefault(sae, []).append((rows, readout.special, readout.top_k))
    return {
        sae: TopFeatureRows(
            batch_row=np.concatenate([rows for rows, _, _ in parts]),
            special=np.concatenate([np.full(len(rows), special) for rows, special, _ in parts]),
            top_k=max(top_k for _, _, top_k in parts),
        )
        for sae, parts in found.items()
    }
