"""The quick check, on vectors that the caller recorded: an SAE at its own sites, and other ways to read its input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saeclamp_saes.evaluation import metrics
from saeclamp_saes.evaluation.interpretations import (
    COMPARED_TOKENS,
    activity_of,
    declared,
    score,
    with_other_preprocessing,
)
from saeclamp_saes.evaluation.report import LEAST, InterpretationScore, best_of, too_many_active
from saeclamp_saes.lm import token_mask
from saeclamp_saes.sae import SAE

FEWEST_TOKENS = 16
"""Ordinary tokens below which nothing is measured."""
PROBLEMS = {
    "clt_layer": "it is one layer of several that together make what it writes to.",
    "crosscoder": "a crosscoder's file may hold one layer of several that together make what it writes to.",
}
"""Kinds of which a part alone may be there, so that a reconstruction has no meaning; and why."""


@dataclass(frozen=True)
class QuickCheck:
    """Result of the quick check; JSON-able through `vars`."""

    num_tokens: int
    explained_variance: float | None
    """None where it has no meaning, or too few tokens were ordinary."""
    l0: float | None
    """Active features per token, on average."""
    problem: str | None
    """Sentence that says why the SAE does not fit, or could not be measured. None: it fits."""


@torch.no_grad()
def quick_check(sae: SAE, x: Tensor, target: Tensor, position: Tensor, is_special: Tensor) -> QuickCheck:
    """
    Measure an SAE on recorded vectors.

    x:          (num_tokens, d_in), at the sites it reads
    target:     (num_tokens, d_out), at the sites it writes, before any edit
    position:   (num_tokens,) int64, place in the token's own sequence
    is_special: (num_tokens,) bool
    """
    if sae.kind in PROBLEMS:
        return QuickCheck(0, None, None, PROBLEMS[sae.kind])
    mask = token_mask.scored_token_mask(x, position, is_special) & token_mask.scored_token_mask(
        target, position, is_special
    )
    x, target = x[mask], target[mask]
    if len(x) < FEWEST_TOKENS:
        return QuickCheck(len(x), None, None, f"only {len(x)} ordinary tokens could be measured.")
    activity = activity_of(sae, x)
    explained, l0 = metrics.explained_variance(target, activity.reconstruction), float(activity.l0.double().mean())
    own, *others = _compare(sae, x, target, l0)
    best, problem = best_of(own, others), None
    if best is not None:
        problem = (
            f"it explains {explained:.2f} of the variance at {sae.site} by {l0:.0f} active features as it is read, and "
            f"{best.explained_variance:.2f} by {best.l0:.0f} {best.name}: {best.hint}."
        )
    elif dense := too_many_active(l0, min(sae.d_in, sae.d_out)):
        problem = f"{dense}."
    elif explained < LEAST:
        problem = (
            f"it explains {explained:.2f} of the variance at {sae.site} (at least {LEAST} is asked for), and no other way "
            "to read it is much better: it is of another model or layer, or was trained on too little."
        )
    return QuickCheck(len(x), explained, l0, problem)


def _compare(sae: SAE, x: Tensor, target: Tensor, l0: float) -> list[InterpretationScore]:
    """Measure all interpretations, the claimed one first, on the same tokens, evenly from the text."""
    step = -(-len(x) // COMPARED_TOKENS)
    x, target = x[::step], target[::step]
    variances, num_components = metrics.principal_variances(target), round(l0)
    return [
        score(reading, x, target, variances, num_components)
        for reading in (declared(sae), *with_other_preprocessing(sae, x, target))
    ]
