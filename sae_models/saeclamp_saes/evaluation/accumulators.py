"""Sums over tokens, from which metrics are computed. All are tensors, so that a file can keep them; fp64 or int64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from saeclamp_saes.evaluation import metrics
from saeclamp_saes.evaluation.histograms import activation_edges, count_by_bin
from saeclamp_saes.evaluation.interpretations import token_chunks
from saeclamp_saes.sae import SAE

WIDEST_GRAM = 8192
"""Widest d_out for which principal components are computed: the fp64 matrix then takes half a gigabyte."""


@dataclass
class MetricSums:
    """Sums over the tokens so far, of one SAE."""

    num_tokens: Tensor
    """()"""
    num_sinks: Tensor
    """() tokens that were left out as sinks"""
    total: Tensor
    """(d_out,) of the vectors to reconstruct"""
    square: Tensor
    """() of their squared norms"""
    gram: Tensor
    """(d_out, d_out) of their outer products; (0, 0) for wide ones"""
    missing: Tensor
    """() of squared distances to the reconstructions"""
    num_active: Tensor
    """(d_sae,) on how many tokens each feature was active"""
    l0_counts: Tensor
    """(d_sae + 1,) how many tokens had 0, 1, ... active features"""
    act_counts: Tensor
    """(num_bins,) of positive activations, in the bins of `activation_edges`"""
    act_total: Tensor
    """() of positive activations"""
    act_largest: Tensor
    """()"""
    num_negative: Tensor
    """() activations; only an AbsTopK SAE has them"""

    @classmethod
    def empty(cls, sae: SAE, device: torch.device, *, widest_gram: int = WIDEST_GRAM) -> MetricSums:
        """Return sums over no tokens."""

        def sums(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        def counts(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=device)

        width = sae.d_out if sae.d_out <= widest_gram else 0
        return cls(
            num_tokens=counts(),
            num_sinks=counts(),
            total=sums(sae.d_out),
            square=sums(),
            gram=sums(width, width),
            missing=sums(),
            num_active=counts(sae.d_sae),
            l0_counts=counts(sae.d_sae + 1),
            act_counts=counts(len(activation_edges()) - 1),
            act_total=sums(),
            act_largest=sums(),
            num_negative=counts(),
        )

    @torch.no_grad()
    def add(self, sae: SAE, x: Tensor, target: Tensor, num_sinks: int) -> None:
        """
        Add tokens, a part of them at a time.

        x:         (n, d_in) fp32, vectors that the SAE reads
        target:    (n, d_out) fp32, vectors that it should write
        num_sinks: tokens that were left out of these
        """
        self.num_tokens += len(x)
        self.num_sinks += num_sinks
        self.total += target.double().sum(dim=0)
        self.square += target.double().square().sum()
        if len(self.gram):
            self.gram += target.double().T @ target.double()
        edges = torch.tensor(activation_edges(), dtype=torch.float64, device=x.device)
        for part, wanted in zip(token_chunks(x, sae), token_chunks(target, sae), strict=True):
            acts = sae.encode(part)
            self.missing += (wanted.double() - sae.decode(acts, part).double()).square().sum()
            self.num_active += acts.count_nonzero(dim=0)
            self.l0_counts += torch.bincount(metrics.l0(acts), minlength=len(self.l0_counts))
            positive = acts[acts > 0].double()
            self.act_counts += count_by_bin(positive, edges)
            self.act_total += positive.sum()
            self.act_largest = torch.cat([positive, self.act_largest[None]]).max()
            self.num_negative += (acts < 0).sum()

    def explained_variance(self) -> float | None:
        """Return the share of the variance around the tokens' mean that is reconstructed; None where nothing varies."""
        variance = float(self.square - self.total.square().sum() / self.num_tokens)
        explained = metrics.explained_share(float(self.missing), variance) if variance > 0 else float("nan")
        return explained if math.isfinite(explained) else None

    def pca_explained_variance(self, k: int) -> float | None:
        """Return the share that the best k directions explain here; None for wide vectors, or where nothing varies."""
        if not len(self.gram):
            return None
        # the difference of two large sums, which is why they are kept in fp64
        centered = self.gram - torch.outer(self.total, self.total) / self.num_tokens
        variances = metrics.variances_of(centered)
        return metrics.share_of(variances, k) if variances.sum() > 0 else None
