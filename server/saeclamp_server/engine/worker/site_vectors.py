"""Worker process: the vectors of a site, as a hook finds them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from saeclamp_saes.parts import parts_of

COPIES = 4
"""Tensors of a gathered one's size that are there at once."""


class SiteVectors(NamedTuple):
    """The vectors of a site in the forward that runs."""

    hidden: Tensor
    """(num_tokens or more, width), the model's dtype; the summand that is edited"""
    residual: Tensor | None
    whole_stream: bool
    """True if the vector is the sum of both tensors; else it is `hidden` alone."""
    norm_eps: float | None
    """Epsilon of the norm, where the vector is `hidden` over its root mean square; else None."""

    def gather(self, rows: Tensor) -> Tensor:
        """Gather vectors: (num_rows, width) fp32, as SAEs are, since a gate flips on a rounding error."""
        x = self.hidden[rows].float()
        if self.whole_stream and self.residual is not None:
            return x + self.residual[rows].float()
        # vLLM's fused norm returns its input's sum with the residual beside its result, but no vector without the gain
        if self.norm_eps is not None:
            return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + self.norm_eps)
        return x

    def parts(self, num_rows: int) -> list[slice]:
        """Cut rows into runs that do not take too much memory when they are gathered."""
        return parts_of(num_rows, COPIES * 4 * self.hidden.shape[1])

    def resid_norms(self, x: Tensor, rows: Tensor) -> Tensor:
        """Compute the residual stream's norms at gathered vectors `x`, or theirs where it is not at hand: (num_rows,)."""
        stream = x if self.residual is None or self.whole_stream else x + self.residual[rows].float()
        norms: Tensor = stream.norm(dim=1)
        return norms
