"""Activation functions, which make an encoder's output sparse, with gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def relu(pre: Tensor) -> Tensor:
    """Keep positive numbers."""
    return pre.relu()


def top_k(pre: Tensor, k: int) -> Tensor:
    """
    Keep each token's k largest, where positive.

    pre: (n, d_sae)
    """
    values, indices = pre.topk(k, dim=1)
    return torch.zeros_like(pre).scatter(1, indices, values.relu())


def batch_top_k(pre: Tensor, k: int) -> Tensor:
    """
    Keep the n * k largest of a batch, where positive: k a token on average, more where a token needs more.

    pre: (n, d_sae)
    """
    acts = pre.relu()
    if k >= pre.shape[1]:
        return acts
    least = acts.detach().flatten().topk(k * len(pre), sorted=False).values.min()
    return torch.where(acts >= least, acts, 0.0)


class JumpReLU(torch.autograd.Function):
    """
    Keep activations above their feature's threshold.

    The threshold's gradient is that of the expectation over the batch, estimated by a rectangular kernel
    (Rajamanoharan et al. 2024, arXiv 2407.14435).
    """

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return torch.where(pre > threshold, pre, 0.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (pre, threshold), (grad,) = ctx.saved_tensors, grads
        near = (pre - threshold).abs() < ctx.bandwidth / 2
        grad_threshold = -threshold / ctx.bandwidth * torch.where(near, grad, 0.0).sum(dim=0)
        return torch.where(pre > threshold, grad, 0.0), grad_threshold, None


class CountActive(torch.autograd.Function):
    """Number of features above their thresholds, per token; its gradient is that of `JumpReLU`, for thresholds alone."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).sum(dim=1).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        (pre, threshold), (grad,) = ctx.saved_tensors, grads
        near = ((pre - threshold).abs() < ctx.bandwidth / 2).to(grad.dtype)
        return None, -(grad @ near) / ctx.bandwidth, None
