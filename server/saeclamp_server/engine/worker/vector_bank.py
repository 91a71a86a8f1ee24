"""
Worker process: vector banks, which are SAEs of fixed size, allocated at load, whose features are uploaded vectors.

A vector d is a feature whose activation is the coefficient of the projection of the residual stream x on it, x.d / |d|^2, of
either sign, and whose decoder row is d. So clamping it to c makes d's part of the stream c times d, and ablating it removes
that part.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from saeclamp_saes import SAE, Site
from saeclamp_server.engine.worker.loaded_sae import LoadedSAE


def make_vector_bank(name: str, site: Site, width: int, capacity: int, device: torch.device) -> LoadedSAE:
    """Allocate a bank for `capacity` vectors at a site; rows that are not set yet edit nothing."""
    sae = SAE(
        reads=(site,),
        writes=(site,),
        W_enc=torch.zeros(capacity, width, device=device).T,
        b_enc=torch.zeros(capacity, device=device),
        W_dec=torch.zeros(capacity, width, device=device),
        b_dec=torch.zeros(width, device=device),
        # no activation function: a projection may have either sign
        threshold=torch.full((capacity,), -math.inf, device=device),
        architecture="vectors",
    )
    return LoadedSAE(name, sae)


def set_row(sae: SAE, row: int, direction: Tensor) -> None:
    """
    Set one feature of a bank to a vector.

    direction: (width,) fp32, not zero
    """
    # in fp64, rounded once, so that the vector's own activation is 1
    exact = direction.double()
    sae.W_enc[:, row] = (exact / exact.square().sum()).to(sae.W_enc)
    sae.W_dec[row] = direction.to(sae.W_dec)
