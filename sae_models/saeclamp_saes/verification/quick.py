"""The quick check, for vectors that somebody else recorded: an SAE at its own place, and other ways to read its input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saeclamp_saes.sae import SAE
from saeclamp_saes.verification import figures
from saeclamp_saes.verification.readings import activity_of, claimed, otherwise
from saeclamp_saes.verification.result import LEAST, MARGIN, PLAUSIBLE

FEWEST_TOKENS = 16
PARTS = ("clt_layer", "crosscoder")
"""Kinds that make only a part of what they write to."""


@dataclass(frozen=True)
class QuickFit:
    """What was measured; JSON-able through `vars`."""

    num_tokens: int
    explained_variance: float | None
    """None where it has no meaning, or too few tokens were ordinary."""
    l0: float | None
    """Active features per token, on average."""
    problem: str | None
    """Why the SAE does not fit, or could not be measured, as a sentence. None: it fits."""


@torch.no_grad()
def quick_fit(sae: SAE, x: Tensor, target: Tensor, position: Tensor, is_special: Tensor) -> QuickFit:
    """
    Measure an SAE on recorded vectors.

    x:          (num_tokens, d_in), where it reads
    target:     (num_tokens, d_out), where it writes, before any edit
    position:   (num_tokens,) int64, in the token's own sequence
    is_special: (num_tokens,) bool
    """
    if sae.kind in PARTS:
        return QuickFit(0, None, None, "it is one layer of several that together make what it writes to.")
    mask = figures.ordinary(x, position, is_special) & figures.ordinary(target, position, is_special)
    x, target = x[mask], target[mask]
    if len(x) < FEWEST_TOKENS:
        return QuickFit(len(x), None, None, f"only {len(x)} ordinary tokens could be measured.")
    activity = activity_of(sae, x)
    explained = figures.explained_variance(target, activity.reconstruction)
    others = [(figures.explained_variance(target, other.reconstruct(x)), other) for other in otherwise(sae, x, target)]
    best, reading = max(others, key=lambda other: other[0], default=(float("-inf"), claimed(sae)))
    problem = None
    if best - explained > MARGIN and best >= PLAUSIBLE:
        problem = (
            f"it explains {explained:.2f} of the variance at {sae.site} as it is read, and {best:.2f} {reading.name}: "
            f"{reading.hint}."
        )
    elif explained < LEAST:
        problem = (
            f"it explains {explained:.2f} of the variance at {sae.site} (at least {LEAST} is asked for), and no other way "
            "to read it is much better: it is of another model or layer, or was trained on too little."
        )
    return QuickFit(len(x), explained, float(activity.l0.double().mean()), problem)
