"""Counts of positive numbers in bins that are equally wide on a logarithmic axis, with the same edges in every run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DENSITY_BINS = 10
"""A decade."""
ACTIVATION_BINS = 50
"""A decade: a bin's edges are 4.7 % apart."""
ACTIVATION_DECADES = (-6, 8)
"""Powers of ten. What is smaller or larger is counted in the first or last bin."""


@dataclass(frozen=True)
class Histogram:
    """How many numbers lie in each bin."""

    edges: tuple[float, ...]
    """num_bins + 1, ascending. A bin holds its lower edge; the last one holds both."""
    counts: tuple[int, ...]
    """(num_bins,)"""

    @classmethod
    def trimmed(cls, edges: Sequence[float], counts: Sequence[int]) -> Histogram:
        """Leave out the empty bins at both ends; no bin is left where there are no numbers."""
        filled = [index for index, count in enumerate(counts) if count]
        if not filled:
            return cls((), ())
        first, last = filled[0], filled[-1]
        return cls(tuple(edges[first : last + 2]), tuple(counts[first : last + 1]))

    def quantile(self, q: float) -> float | None:
        """
        Interpolate, on the logarithmic axis, the number that a share of all lies below: right to a bin's width.

        q:       0 to 1
        returns: None where there are no numbers
        """
        wanted, below = q * sum(self.counts), 0
        for low, high, count in zip(self.edges, self.edges[1:], self.counts, strict=False):
            if count and below + count >= wanted:
                return float(low * (high / low) ** ((wanted - below) / count))
            below += count
        return None


def log_edges(lowest: int, highest: int, bins: int) -> list[float]:
    """
    Edges from 10^(lowest / bins) to 10^(highest / bins), both with.

    bins: a decade
    """
    return [10.0 ** (power / bins) for power in range(lowest, highest + 1)]


def activation_edges() -> list[float]:
    """Edges for activations, whatever their scale."""
    lowest, highest = ACTIVATION_DECADES
    return log_edges(lowest * ACTIVATION_BINS, highest * ACTIVATION_BINS, ACTIVATION_BINS)


def count_by_bin(values: Tensor, edges: Tensor) -> Tensor:
    """
    Count numbers by bin.

    values:  (n,)
    edges:   (num_bins + 1,) fp64, ascending
    returns: (num_bins,) int64
    """
    bins = torch.bucketize(values.double(), edges, right=True) - 1
    num_bins = len(edges) - 1
    return torch.bincount(bins.clamp(0, num_bins - 1), minlength=num_bins)


def density_histogram(num_active: Tensor, num_tokens: int) -> Histogram:
    """
    Histogram of the shares of tokens on which features are active, from one token on; features that never are, are left out.

    num_active: (d_sae,) int64
    """
    density = num_active[num_active > 0].double().cpu() / num_tokens
    edges = log_edges(math.floor(DENSITY_BINS * math.log10(1 / num_tokens)), 0, DENSITY_BINS)
    return Histogram.trimmed(edges, count_by_bin(density, torch.tensor(edges, dtype=torch.float64)).tolist())


def quantile_of_counts(counts: Tensor, q: float) -> float:
    """
    Find the quantile of whole numbers of which it is known how often each occurs, as `torch.quantile` interpolates it.

    counts: (n,) int64, of 0, 1, ...; not all 0
    """
    cumulative = counts.cumsum(dim=0)
    rank = q * (int(cumulative[-1]) - 1)
    low, high = (int(torch.searchsorted(cumulative, end, right=True)) for end in (math.floor(rank), math.ceil(rank)))
    return low + (rank - math.floor(rank)) * (high - low)
