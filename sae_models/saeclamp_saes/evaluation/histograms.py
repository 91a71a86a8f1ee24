"""Counts of positive numbers in bins that are equally wide on a logarithmic axis, with the same edges in every run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DENSITY_BINS = 10
"""Bins per decade."""
ACTIVATION_BINS = 50
"""Bins per decade: a bin's edges are 4.7 % apart."""
ACTIVATION_DECADES = (-6, 8)
"""Powers of ten at the ends. Smaller and larger numbers are counted in the first and last bin."""


@dataclass(frozen=True)
class Histogram:
    """Numbers counted by bin."""

    edges: tuple[float, ...]
    """(num_bins + 1,), ascending. A bin includes its lower edge; the last one includes both."""
    counts: tuple[int, ...]
    """(num_bins,)"""

    @classmethod
    def trimmed(cls, edges: Sequence[float], counts: Sequence[int]) -> Histogram:
        """Make a histogram without the empty bins at both ends; without any bin where there are no numbers."""
        filled = [index for index, count in enumerate(counts) if count]
        if not filled:
            return cls((), ())
        first, last = filled[0], filled[-1]
        return cls(tuple(edges[first : last + 2]), tuple(counts[first : last + 1]))

    def quantile(self, q: float) -> float | None:
        """
        Return the number that a share `q` of all lies below, interpolated on the logarithmic axis: right to a bin's width.

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
    Return edges from 10^(lowest / bins) to 10^(highest / bins), both included.

    bins: bins per decade
    """
    return [10.0 ** (power / bins) for power in range(lowest, highest + 1)]


def activation_edges() -> list[float]:
    """Return the edges for activations, the same for every SAE."""
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
    Make the histogram of features by density, the share of tokens on which one is active; never active ones are left out.

    num_active: (d_sae,) int64
    """
    density = num_active[num_active > 0].double().cpu() / num_tokens
    edges = log_edges(math.floor(DENSITY_BINS * math.log10(1 / num_tokens)), 0, DENSITY_BINS)
    return Histogram.trimmed(edges, count_by_bin(density, torch.tensor(edges, dtype=torch.float64)).tolist())


def quantile_of_counts(counts: Tensor, q: float) -> float:
    """
    Find the quantile of whole numbers, given how often each occurs, interpolated as `torch.quantile` does it.

    counts: (n,) int64, how often 0, 1, ... occur; not all 0
    """
    cumulative = counts.cumsum(dim=0)
    rank = q * (int(cumulative[-1]) - 1)
    low, high = (int(torch.searchsorted(cumulative, end, right=True)) for end in (math.floor(rank), math.ceil(rank)))
    return low + (rank - math.floor(rank)) * (high - low)
