"""
Metrics of an SAE, as tensors in and numbers out. Sums are in fp64.

Every metric is over ordinary tokens. A few sinks (the first position, and tokens whose vector's norm is a hundred times that
of others) hold most of the variance and are easily reconstructed, so with them in, an SAE looks far better than it is.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor

NumberT = TypeVar("NumberT", float, Tensor)

DENSE_SHARE = 0.1
"""A feature that is active on more than this share of the tokens is dense."""


def explained_variance(target: Tensor, reconstruction: Tensor) -> float:
    """
    Return the share of the variance around the mean that a reconstruction explains: 1 is perfect, 0 no better than the mean.

    target:         (num_tokens, d)
    reconstruction: (num_tokens, d)
    returns:        at most 1; minus infinity for a reconstruction that is not finite or a target that does not vary
    """
    target = target.double()
    total = (target - target.mean(dim=0)).square().sum()
    share = float(explained_share((target - reconstruction.double()).square().sum(), total))
    return share if math.isfinite(share) else float("-inf")


def explained_share(missing: NumberT, total: NumberT) -> NumberT:
    """
    Return the share of a variance that is explained.

    missing: sum of the squared errors
    total:   sum of the squared differences from the mean
    """
    return 1 - missing / total


def pca_explained_variance(x: Tensor, k: int) -> float:
    """
    Return the share that the best k directions explain on the tokens they are chosen on: k numbers a token, not sparse.

    x: (num_tokens, d)
    """
    return share_of(principal_variances(x), k)


def principal_variances(x: Tensor) -> Tensor:
    """
    Return the variance along each principal direction, largest first, (min(num_tokens, d),) fp64.

    x: (num_tokens, d)
    """
    centered = x.double() - x.double().mean(dim=0)
    # the smaller one: both have the same eigenvalues, but for zeros
    return variances_of(centered.T @ centered if x.shape[1] <= x.shape[0] else centered @ centered.T)


def variances_of(gram: Tensor) -> Tensor:
    """
    Return the variance along each principal direction, largest first, (n,), given what the centred vectors sum up to.

    gram: (n, n) fp64, the sum of their outer products, or all their inner products
    """
    ascending: Tensor = torch.linalg.eigvalsh(gram)
    return ascending.clamp_min(0.0).flip(0)


def share_of(variances: Tensor, k: int) -> float:
    """Return the share of the first k of `principal_variances` in their sum."""
    return float(variances[:k].sum() / variances.sum()) if k > 0 else 0.0


def l0(acts: Tensor) -> Tensor:
    """
    Count the active features of each token.

    acts:    (num_tokens, d_sae)
    returns: (num_tokens,) int64
    """
    return acts.count_nonzero(dim=1)


def dead_share(num_active: Tensor) -> float:
    """
    Return the share of features that no token activated.

    num_active: (d_sae,) int64, on how many tokens each feature was active
    """
    return float((num_active == 0).double().mean())


def dense_share(num_active: Tensor, num_tokens: int) -> float:
    """
    Return the share of features that are active on more than `DENSE_SHARE` of the tokens.

    num_active: (d_sae,) int64, on how many tokens each feature was active
    """
    return float((num_active > DENSE_SHARE * num_tokens).double().mean())


def loss_recovered(clean: float, spliced: float, ablated: float) -> float | None:
    """Return the share of an ablation's loss that the SAE's reconstruction wins back; None where ablating costs nothing."""
    return (ablated - spliced) / (ablated - clean) if ablated > clean else None
