"""The metrics of an SAE, JSON-able."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from saeclamp_saes.evaluation import metrics
from saeclamp_saes.evaluation.accumulators import MetricSums
from saeclamp_saes.evaluation.histograms import Histogram, activation_edges, density_histogram, quantile_of_counts
from saeclamp_saes.evaluation.report import Verification
from saeclamp_saes.sae import SAE

PERCENTILES = (1, 5, 25, 50, 75, 95, 99, 99.9)
FREQUENT_SHARE = 0.01
"""A feature that is active on more than this share of the tokens is frequent; dense is above ten times that."""


@dataclass(frozen=True)
class DensitySummary:
    """Densities of features: the shares of tokens on which they are active."""

    num_never: int
    """Features that were active on no token; they are in no bin."""
    over_1_percent_share: float
    """Share of all features that are active on more than 1 % of the tokens."""
    over_10_percent_share: float
    median: float | None
    """Median density of the features that were active at all."""
    histogram: Histogram
    """Features by density."""


@dataclass(frozen=True)
class ActivationSummary:
    """All positive activations, of all features and tokens together."""

    unit: str
    """`native`, as the SAE's encoder gives them, or `decoder_norm`."""
    num: int
    num_negative: int
    """Negative activations, which are left out; only an AbsTopK SAE has them."""
    mean: float | None
    largest: float | None
    percentiles: dict[str, float]
    """Percentiles by percentage, right to the width of a bin (4.7 %)."""
    histogram: Histogram


@dataclass(frozen=True)
class Measurement:
    """All metrics of one SAE on one set of tokens."""

    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    d_sae: int
    num_tokens: int
    """Tokens that were measured."""
    num_sinks: int
    """Tokens left out because their vector's norm is more than 10 times the median."""
    explained_variance: float | None
    """Share of the variance that is reconstructed; None where nothing varies."""
    pca_explained_variance: float | None
    """The same by as many principal components as features are active, chosen on these tokens; None for wide vectors."""
    l0_mean: float
    l0_p5: float
    l0_p95: float
    dead_share: float
    """Share of features that were active on none of these tokens."""
    densities: DensitySummary
    activations: ActivationSummary
    verification: Verification
    """Verdict and cross-entropies, on `verification.num_tokens` tokens: fewer, evenly from the same data."""

    @classmethod
    def from_sums(cls, name: str, sae: SAE, sums: MetricSums, verification: Verification) -> Measurement:
        """Compute the metrics from sums over one token or more."""
        num_tokens = int(sums.num_tokens)
        l0 = float(sums.num_active.sum()) / num_tokens
        return cls(
            name=name,
            reads=tuple(map(str, sae.reads)),
            writes=tuple(map(str, sae.writes)),
            d_sae=sae.d_sae,
            num_tokens=num_tokens,
            num_sinks=int(sums.num_sinks),
            explained_variance=sums.explained_variance(),
            pca_explained_variance=sums.pca_explained_variance(round(l0)),
            l0_mean=l0,
            l0_p5=quantile_of_counts(sums.l0_counts, 0.05),
            l0_p95=quantile_of_counts(sums.l0_counts, 0.95),
            dead_share=metrics.dead_share(sums.num_active),
            densities=_densities(sums.num_active, num_tokens),
            activations=_activations(sae, sums),
            verification=verification,
        )

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {**asdict(self), "verification": self.verification.to_json()}


def _densities(num_active: Any, num_tokens: int) -> DensitySummary:
    ever = num_active[num_active > 0].double()
    return DensitySummary(
        num_never=int((num_active == 0).sum()),
        over_1_percent_share=float((num_active > FREQUENT_SHARE * num_tokens).double().mean()),
        over_10_percent_share=metrics.dense_share(num_active, num_tokens),
        median=float(ever.quantile(0.5)) / num_tokens if len(ever) else None,
        histogram=density_histogram(num_active, num_tokens),
    )


def _activations(sae: SAE, sums: MetricSums) -> ActivationSummary:
    histogram = Histogram.trimmed(activation_edges(), sums.act_counts.tolist())
    num, largest = sum(histogram.counts), float(sums.act_largest)
    quantiles = {f"{percent:g}": histogram.quantile(percent / 100) for percent in PERCENTILES}
    return ActivationSummary(
        unit=sae.unit,
        num=num,
        num_negative=int(sums.num_negative),
        mean=float(sums.act_total) / num if num else None,
        largest=largest if num else None,
        # interpolated within a bin, a percentile may lie above the largest
        percentiles={percent: min(value, largest) for percent, value in quantiles.items() if value is not None},
        histogram=histogram,
    )
