"""The canonical SAE: what every checkpoint layout is read into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Site(NamedTuple):
    """A place in the model. Only the residual stream after a block is steered today."""

    point: str
    """`resid_post`: the stream as block `layer` leaves it."""
    layer: int

    def __str__(self) -> str:
        return f"{self.point} {self.layer}"


@dataclass(frozen=True)
class SAE:
    """
    A sparse autoencoder whose activations depend on one encoder row each: ReLU, or JumpReLU with a threshold per feature.

    All tensors are fp32 whatever the storage type, because a JumpReLU gate flips on a rounding error near its threshold.
    What a checkpoint subtracts from its input is already folded into `b_enc`.
    """

    site: Site
    W_enc: Tensor
    """(d_in, d_sae)"""
    b_enc: Tensor
    """(d_sae,)"""
    W_dec: Tensor
    """(d_sae, d_in)"""
    b_dec: Tensor
    """(d_in,)"""
    threshold: Tensor
    """(d_sae,), at least 0. An activation at or below it is zero; 0 is a plain ReLU."""

    @property
    def d_in(self) -> int:
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        return self.W_dec.shape[0]

    def encode(self, resid: Tensor) -> Tensor:
        """
        Activations of every feature.

        resid:   (..., d_in), any floating dtype
        returns: (..., d_sae), fp32
        """
        pre = resid.float() @ self.W_enc + self.b_enc
        return torch.where(pre > self.threshold, pre, 0.0)

    def decode(self, acts: Tensor) -> Tensor:
        """
        Map activations back to the stream.

        acts:    (..., d_sae)
        returns: (..., d_in), fp32
        """
        return acts.float() @ self.W_dec + self.b_dec
