"""
What a clamp does, as tensors in and tensors out.

Replacing feature i's activation a_i(x) by v inside `decode(encode(x))` and keeping the reconstruction error changes the
stream by `(v - a_i(x)) * W_dec[i]`: the error term and `b_dec` cancel. So only the rows of the touched features are needed,
and the result is exact whenever a_i is a function of encoder row i alone (ReLU, JumpReLU).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from saeclamp_saes.sae import SAE


@dataclass(frozen=True)
class FeatureRows:
    """The rows of every feature at one site, one feature a row, so that a few are gathered without touching the rest."""

    encoder: Tensor
    """(num_rows, d_in)"""
    bias: Tensor
    """(num_rows,)"""
    threshold: Tensor
    """(num_rows,)"""
    decoder: Tensor
    """(num_rows, d_in)"""
    decoder_norm: Tensor
    """(num_rows,)"""

    @classmethod
    def of(cls, saes: list[SAE], device: torch.device) -> FeatureRows:
        """Stack the features of `saes`, which share a site, in order."""
        decoder = torch.cat([sae.W_dec for sae in saes]).to(device)
        return cls(
            encoder=torch.cat([sae.W_enc.T for sae in saes]).contiguous().to(device),
            bias=torch.cat([sae.b_enc for sae in saes]).to(device),
            threshold=torch.cat([sae.threshold for sae in saes]).to(device),
            decoder=decoder,
            decoder_norm=decoder.norm(dim=1),
        )


class Edits(NamedTuple):
    """Which feature moves at which token: one entry per (token, intervention) pair, all of one site."""

    token: Tensor
    """(num_pairs,) int64, row of the gathered stream"""
    row: Tensor
    """(num_pairs,) int64, row of the `FeatureRows`"""
    target: Tensor
    """(num_pairs,) fp32, in the encoder's units"""
    keep: Tensor
    """(num_pairs,) fp32: 0 moves the activation to `target` (clamp), 1 moves it by `target` (add)"""
    live: Tensor
    """(num_pairs,) fp32, 0 or 1; 0 leaves the token alone"""


class Moved(NamedTuple):
    """What the edits did, per pair."""

    acts: Tensor
    """(num_pairs,) fp32, activation before the edit"""
    dose: Tensor
    """(num_pairs,) fp32, length of the edit over the length of the token's residual"""


def residual_delta(resid: Tensor, rows: FeatureRows, edits: Edits) -> tuple[Tensor, Moved]:
    """
    Return the change that `edits` make to the stream.

    Every activation is read from the same unsteered stream; a token's change is the sum over its pairs.

    resid:   (num_tokens, d_in) fp32
    returns: (num_tokens, d_in) fp32, and what moved
    """
    stream = resid[edits.token]
    pre = (stream * rows.encoder[edits.row]).sum(dim=1) + rows.bias[edits.row]
    acts = torch.where(pre > rows.threshold[edits.row], pre, 0.0)
    move = (edits.target + (edits.keep - 1.0) * acts) * edits.live
    length = stream.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    dose = move.abs() * rows.decoder_norm[edits.row] / length
    delta = torch.zeros_like(resid).index_add_(0, edits.token, move[:, None] * rows.decoder[edits.row])
    return delta, Moved(acts, dose)
