"""The training SAE: the parameters that are trained, for vectors scaled to a root mean square norm of 1."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FIRST_THRESHOLD = 1e-3
"""Threshold with which a JumpReLU begins."""


class TrainingSAE(nn.Module):
    """Encoder and decoder, in fp32: in half precision small steps would be rounded away."""

    def __init__(self, center: Tensor, d_sae: int, seed: int) -> None:
        """
        Begin with random directions of norm 1 as the decoder's rows and as the encoder's columns.

        center: (d_in,), initial bias of the decoder
        """
        super().__init__()
        rows = torch.randn(d_sae, len(center), generator=torch.Generator().manual_seed(seed))
        rows = nn.functional.normalize(rows, dim=1).to(center.device)
        self.W_enc = nn.Parameter(rows.T.contiguous())
        """(d_in, d_sae)"""
        self.b_enc = nn.Parameter(torch.zeros(d_sae, device=center.device))
        """(d_sae,)"""
        self.W_dec = nn.Parameter(rows.clone())
        """(d_sae, d_in)"""
        self.b_dec = nn.Parameter(center.clone())
        """(d_in,), also subtracted before encoding"""
        self.threshold = nn.Parameter(torch.full((d_sae,), FIRST_THRESHOLD, device=center.device))
        """(d_sae,), of a JumpReLU; others leave it alone"""

    def pre(self, x: Tensor) -> Tensor:
        """
        Map vectors to pre-activations: (x - b_dec) @ W_enc + b_enc.

        x:       (n, d_in)
        returns: (n, d_sae)
        """
        # the bias once and not per token: its gradient would cost another product of all tokens with W_enc
        return torch.addmm(self.b_enc - self.b_dec @ self.W_enc, x, self.W_enc)

    @torch.no_grad()
    def turn_only(self) -> None:
        """Remove from the decoder rows' gradient the part along the rows, which would change their norms."""
        grad = self.W_dec.grad
        assert grad is not None
        grad -= (grad * self.W_dec).sum(dim=1, keepdim=True) * self.W_dec

    @torch.no_grad()
    def to_unit_rows(self) -> None:
        """Scale the decoder rows to norm 1."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny))
