"""The losses of training. Each is a mean over the tokens of a batch, in units of the scaled vectors' squared norm."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from saeclamp_saes.training.training_sae import TrainingSAE


def squared_error(x: Tensor, reconstruction: Tensor) -> Tensor:
    """
    Return the mean squared norm of the error.

    x, reconstruction: (n, d_in)
    """
    return (x - reconstruction).square().sum(dim=1).mean()


def matryoshka_mse(sae: TrainingSAE, x: Tensor, acts: Tensor, groups: Sequence[int]) -> tuple[Tensor, Tensor]:
    """
    Return the mean error over the reconstructions by each group's first features, and the last group's reconstruction.

    Source: Bussmann et al. 2025, arXiv 2503.17547 (Matryoshka). With all features as the only group it is the plain error.
    x:      (n, d_in)
    acts:   (n, d_sae)
    groups: ascending numbers of features
    """
    reconstruction, errors = sae.b_dec.expand_as(x), []
    for first, end in pairwise((0, *groups)):
        reconstruction = torch.addmm(reconstruction, acts[:, first:end], sae.W_dec[first:end])
        errors.append(squared_error(x, reconstruction))
    return torch.stack(errors).mean(), reconstruction


def weighted_l1(sae: TrainingSAE, acts: Tensor) -> Tensor:
    """
    Return the sum of a token's activations, each times its decoder row's norm: small activations of long rows gain nothing.

    acts: (n, d_sae)
    """
    lengths: Tensor = sae.W_dec.norm(dim=1)
    return (acts @ lengths).mean()


def l0_target_loss(num_active: Tensor, k: int) -> Tensor:
    """
    Return the squared relative distance of the mean number of active features from k.

    num_active: (n,)
    """
    squared: Tensor = (num_active.mean() / k - 1).square()
    return squared


def auxk_loss(sae: TrainingSAE, pre: Tensor, missing: Tensor, is_dead: Tensor) -> Tensor:
    """
    Return the share of the error's variance that dead features fail to explain (AuxK), at most d_in / 2 of them a token.

    Source: Gao et al. 2024, arXiv 2406.04093.
    pre:     (n, d_sae)
    missing: (n, d_in), error of the reconstruction, without gradient
    is_dead: (d_sae,) bool
    """
    dead = is_dead.nonzero()[:, 0]
    most = min(missing.shape[1] // 2, len(dead))
    if most == 0:
        return missing.new_zeros(())
    values, indices = pre[:, dead].topk(most, dim=1)
    acts = torch.zeros_like(pre[:, dead]).scatter(1, indices, values.relu())
    # a perfect reconstruction would be 0 / 0
    variance = squared_error(missing, missing.mean(dim=0)).clamp_min(torch.finfo(torch.float32).tiny)
    return squared_error(missing, acts @ sae.W_dec[dead]) / variance
