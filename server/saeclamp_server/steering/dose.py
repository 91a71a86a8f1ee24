"""Doses: norms of edits as multiples of the residual stream's median norm, from the values alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from saeclamp_saes import Site
from saeclamp_saes.clamping import UPDATES
from saeclamp_server.errors import DoseTooLargeError, InvalidSteeringError
from saeclamp_server.site_norms import Rounding, SiteNorms, rounded
from saeclamp_server.steering.program import EditSpec


def resid_norm_to_act(value: float, norms: SiteNorms, index: int, path: str, rounding: Rounding = rounded) -> float:
    """Convert multiples of the residual stream's median norm to the encoder's units. Raises RequestError."""
    if norms.median_resid_norm is None:
        raise InvalidSteeringError("The length of the residual stream could not be measured at this site.", path)
    if not norms.row_norms[index]:
        raise InvalidSteeringError("This feature's decoder row is empty, so it has no length to measure by.", path)
    # rounded, so that a norm that is measured again at the next start, an ulp off, gives the same edit
    return value * rounding(norms.median_resid_norm) / rounding(norms.row_norms[index])


MAX_DOSE = 100.0
"""Default bound on doses. Text breaks at a hundredth of it; numbers overflow only far above it."""


def dose(edit: EditSpec, norms: SiteNorms, max_act: float | None, site: str, needs_measure: bool = True) -> float:
    """
    Return the largest norm of an edit, in median norms of the residual stream: the feature is not active, or at its maximum.

    max_act:       the feature's stored maximum; None where there is none
    needs_measure: True to refuse an edit that nothing can be measured by; False to return 0 for it
    Raises InvalidSteeringError where there is nothing to measure by.
    """
    stream = norms.rounded_resid_norm
    if stream is None and not needs_measure:
        return 0.0
    if stream is None:
        raise InvalidSteeringError(
            f"The length of the residual stream could not be measured at {site}, and this server bounds doses.",
            "steering",
        )
    move, row = UPDATES[edit.op](edit.value), norms.row_norms[edit.index]
    if max_act is None and abs(move.gain) > 1 and row:
        max_act = stream / row  # what is multiplied may well be as long as the stream
    # with every operation the change is monotonic in the activation, so it is largest at one end
    farthest = max(
        abs(min(max(move.offset + move.gain * act, move.low - act), move.high - act)) for act in (0.0, max_act or 0.0)
    )
    return farthest * row / stream


def check_doses(
    edits: Sequence[EditSpec],
    paths: Sequence[str],
    sites: Sequence[Site],
    doses: Sequence[float],
    meet: NDArray[np.bool_],
    max_dose: float,
) -> None:
    """
    Refuse edits that could together move a token by more than `max_dose`; those that can meet at one site are added up.

    paths, sites, doses: per edit
    meet: (num_edits, num_edits), True where two edits can touch the same token
    Raises DoseTooLargeError.
    """
    for number, site in enumerate(sites):
        # edits that meet this one need not all meet each other: then the bound is stricter than it must be
        together = [other for other in np.flatnonzero(meet[number]).tolist() if sites[other] == site]
        total = sum(doses[other] for other in together)
        if total > max_dose:
            longest = max(together, key=lambda other: doses[other])
            parts = [(edits[other].target, doses[other]) for other in together]
            raise DoseTooLargeError(str(site), total, max_dose, parts, paths[longest])
