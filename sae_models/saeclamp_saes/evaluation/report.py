"""The verdict on an SAE, and the rule by which another interpretation refutes the claimed one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

MARGIN = 0.1
"""Another interpretation that explains so much more of the variance is taken for the right one."""
NEAR_MARGIN = 0.02
"""The same for another site, whose vectors are alike, if it is also this much nearer to PCA's share at that site."""
LEAST = 0.5
"""An SAE that explains less of the variance than this does not fit."""

ACTIVATION_MARGIN = 0.2
"""Another activation function is right if it is so much further above PCA, with a component for each active feature."""

PLAUSIBLE = 0.25
"""An interpretation that explains less than this is no advice, however bad the claimed one is."""


@dataclass(frozen=True)
class InterpretationScore:
    """The fit of an SAE under one interpretation."""

    name: str
    explained_variance: float
    hint: str
    writes: tuple[str, ...]
    pca_explained_variance: float
    """Share that PCA explains of this interpretation's target: sites differ in how easy they are."""
    l0: float = 0.0
    """Features that are active per token, on average."""
    changes_activation: bool = False
    """True if only the activation function differs. PCA then has as many components as features are active here."""

    def fits_better_than(self, own: InterpretationScore) -> bool:
        """
        Tell whether this interpretation refutes the claimed one, `own`.

        Residual streams of neighbouring layers are alike, and some are easy: an SAE may explain more there than where it was
        trained. More, and more over PCA there, it did nowhere: with 11 SAEs, and with PCA's own directions in each layer of
        SmolLM2, the smaller of the two gains was -0.004 at most where the claim was right. It was above the margin for 14
        of 22 claims that were one layer off; the other 8 were in the first half of the layers, which are the most alike.
        Where the claimed interpretation is bad anyway, a better site is named even if it is only easier.

        An activation function that lets more features through explains more, whatever was trained: two SAEs that were
        trained with k = 32 explain .82 by 223 features and .60 by 147 as plain ReLUs, more than as what they are. But 223
        principal components do more (.92, .88). As TopK they were above PCA (.17, .02); an SAE trained as a ReLU was below
        it whatever k was tried, and by .15 less far at most than as it is.
        """
        gain = self.explained_variance - own.explained_variance
        relative = self.over_pca - own.over_pca
        if self.explained_variance < PLAUSIBLE:
            return False
        if self.changes_activation:
            sparser = own.over_pca < 0 < self.over_pca and relative > ACTIVATION_MARGIN
            return self.explained_variance >= LEAST and (sparser or (gain > MARGIN and relative > 0))
        if self.writes == own.writes:
            return gain > MARGIN
        far = gain > MARGIN and (relative > 0 or own.explained_variance < LEAST)
        near = min(gain, relative) > NEAR_MARGIN and self.explained_variance >= LEAST
        return far or near

    @property
    def over_pca(self) -> float:
        """Explained variance less that of PCA at the same site."""
        return self.explained_variance - self.pca_explained_variance


def best_of(own: InterpretationScore, others: Sequence[InterpretationScore]) -> InterpretationScore | None:
    """Return the interpretation that refutes the claimed one best; None if none does."""
    refuting = [other for other in others if other.fits_better_than(own)]
    if not all(other.changes_activation for other in refuting):
        # of like places the right one need not explain most: it is where least is missing
        least = max(own.explained_variance, PLAUSIBLE)
        better = [other for other in others if not other.changes_activation and other.explained_variance > least]
        refuting = [*better, *(other for other in refuting if other.changes_activation)]
    return max(refuting, key=lambda other: other.over_pca, default=None)


def too_many_active(l0: float, width: int) -> str | None:
    """Return a message if more features are active than a vector has numbers, as in no sparse code; else None."""
    if l0 <= width:
        return None
    return (
        f"{l0:.0f} features are active per token, more than the {width} numbers of a vector, so what they explain shows "
        "nothing: its activation function is another one. If its card names a TopK, use ?activation=topk&k=K"
    )


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropies of the model, in nats per token, with other vectors at the sites the SAE writes. Sinks keep theirs."""

    clean: float
    spliced: float
    """With the SAE's reconstruction."""
    zero: float
    mean: float
    """With the mean over the tokens."""
    recovered_against_zero: float | None
    """(zero - spliced) / (zero - clean). None where ablating costs nothing. Flatters: see `recovered_against_mean`."""
    recovered_against_mean: float | None


@dataclass(frozen=True)
class Verification:
    """The verdict on an SAE, with the metrics it rests on."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    verdict: str
    """`ok`, or a sentence that says what is wrong and what to do."""
    warnings: tuple[str, ...]
    num_tokens: int
    """Tokens that were measured."""
    num_sinks: int
    """Tokens left out because their vector's norm is more than 10 times the median."""
    explained_variance: float
    pca_explained_variance: float
    """Share that as many principal components as features are active explain, chosen on these tokens: an upper yardstick."""
    l0_mean: float
    l0_p5: float
    l0_p95: float
    dead_share: float
    """Share of features that were active on none of these tokens; with more tokens it is smaller."""
    dense_share: float
    """Share of features that were active on more than 10 % of the tokens."""
    cross_entropy: CrossEntropy
    readings: tuple[InterpretationScore, ...]
    """The claimed one first, then the others, best first; all on the same tokens."""
    calibrated_threshold: float | None
    """For a TopK SAE: the threshold that keeps as many activations per token on average (usable as `?threshold=`)."""

    @property
    def fits(self) -> bool:
        return self.verdict == "ok"

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able values; null for a metric that is not finite."""
        return {"fits": self.fits, **_finite(asdict(self))}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
