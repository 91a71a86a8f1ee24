"""The canonical SAE, which every checkpoint layout is read into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from saeclamp_saes.narrow_rows import exact_bf16, project_on, weighted_sum
from saeclamp_saes.sites import Site

Kind = Literal["sae", "transcoder", "skip_transcoder", "clt_layer", "crosscoder"]
Unit = Literal["native", "decoder_norm"]


class TopK(NamedTuple):
    """Only the k largest activations of a token are kept, so each depends on the whole encoder."""

    k: int
    signed: bool = False
    """Largest by absolute value, keeping the sign (AbsTopK); otherwise negative ones among the k become zero."""


class InputNorm(NamedTuple):
    """Normalisation of a token's vector before encoding, undone after decoding. Constant factors are folded instead."""

    center: bool = False
    """Subtract the mean over d_in."""
    scale: Literal["none", "std", "l2"] = "none"
    """Divide by the unbiased standard deviation (layer norm), or by the norm over sqrt(d_in)."""
    eps: float = 0.0
    """Added to the standard deviation when dividing; not when multiplying back."""

    def apply(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        Normalise, and return what undoes it.

        x:       (..., d_in)
        returns: (..., d_in); scale (..., 1) that a decoded vector is multiplied by; mean (..., 1) that is then added
        """
        mean = x.mean(dim=-1, keepdim=True) if self.center else torch.zeros_like(x[..., :1])
        centered = x - mean if self.center else x
        if self.scale == "std":
            std = centered.std(dim=-1, keepdim=True)
            return centered / (std + self.eps), std, mean
        if self.scale == "l2":
            length = centered.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
            # a zero vector stays zero, where 0 / 0 would be NaN
            return centered / length.clamp_min(torch.finfo(x.dtype).tiny), length, mean
        return centered, torch.ones_like(mean), mean

    @property
    def is_identity(self) -> bool:
        return not self.center and self.scale == "none"


class FeatureRows(NamedTuple):
    """The rows of an SAE's tensors that moving a few features needs, one feature a row."""

    encoder: Tensor
    """(num_rows, d_in)"""
    bias: Tensor
    """(num_rows,)"""
    threshold: Tensor
    """(num_rows,)"""
    decoder: Tensor
    """(num_rows, d_out)"""


@dataclass(frozen=True)
class SAE:
    """
    A sparse autoencoder, or a transcoder, or one layer of a cross-layer transcoder, or a crosscoder.

    It reads the vectors at `reads`, side by side, and writes to `writes`, side by side. Everything constant in a checkpoint
    (a bias subtracted from the input, input and decoder scales, gates) is folded into the tensors, which are fp32 whatever
    the storage type, because a JumpReLU gate flips on a rounding error near its threshold. `narrowed` alone makes W_enc and
    W_dec bf16, where no number changes; what is computed with them is fp32 all the same.
    """

    reads: tuple[Site, ...]
    writes: tuple[Site, ...]
    W_enc: Tensor
    """(d_in, d_sae), stored with each feature's column contiguous; d_in counts all of `reads`"""
    b_enc: Tensor
    """(d_sae,)"""
    W_dec: Tensor
    """(d_sae, d_out); d_out counts all of `writes`"""
    b_dec: Tensor
    """(d_out,)"""
    threshold: Tensor
    """
    (d_sae,), at least 0. An activation at or below it is zero; 0 is a plain ReLU. Not used by a signed TopK. Minus infinity
    where a feature is a plain direction, whose activation is a projection of either sign.
    """
    kind: Kind = "sae"
    top_k: TopK | None = None
    input_norm: InputNorm = field(default=InputNorm())
    W_skip: Tensor | None = None
    """(d_in, d_out) of a skip transcoder: added to the output, past the features. Cancels in a clamp."""
    architecture: str = "relu"
    """relu, jumprelu, topk, abstopk or gated: what the checkpoint calls it. Gated is folded into JumpReLU, exactly."""
    unit: Unit = "native"
    """Unit of the activations: as the checkpoint's own code gives them, or along decoder rows of norm 1."""
    model_name: str | None = None
    """The model it was trained on, as the checkpoint calls it."""

    @property
    def site(self) -> Site:
        """The first site it writes to."""
        return self.writes[0]

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_out(self) -> int:
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        return self.W_dec.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """Type that is computed in: that of all tensors but W_enc and W_dec, which may be narrower."""
        return self.b_enc.dtype

    def encode(self, x: Tensor) -> Tensor:
        """
        Activations of every feature.

        x:       (..., d_in), any floating dtype
        returns: (..., d_sae), in the SAE's dtype
        """
        normed, _, _ = self.input_norm.apply(x.to(self.dtype))
        return self._activate(project_on(self.W_enc.T, normed) + self.b_enc)

    def decode(self, acts: Tensor, x: Tensor | None = None) -> Tensor:
        """
        Map activations to the vectors that the SAE writes.

        acts:    (..., d_sae)
        x:       (..., d_in), what was encoded; needed where the token's own scale or a skip connection takes part
        returns: (..., d_out)
        Raises ValueError when x is needed and not given.
        """
        out = weighted_sum(self.W_dec, acts.to(self.dtype)) + self.b_dec
        if self.input_norm.is_identity and self.W_skip is None:
            return out
        if x is None:
            raise ValueError("This SAE decodes with the token's own scale or a skip connection: pass the encoded x.")
        x = x.to(self.dtype)
        _, scale, mean = self.input_norm.apply(x)
        out = out * scale + mean
        return out if self.W_skip is None else out + x @ self.W_skip

    def rows(self, indices: Tensor | Sequence[int] | None = None) -> FeatureRows:
        """
        Return the rows of the features `indices`; for None those of all features, without a copy.

        indices: (num_rows,) int64
        """
        if indices is None:
            return FeatureRows(self.W_enc.T, self.b_enc, self.threshold, self.W_dec)
        index = torch.as_tensor(indices, dtype=torch.int64, device=self.W_dec.device)
        return FeatureRows(self.W_enc.T[index], self.b_enc[index], self.threshold[index], self.W_dec[index])

    def tensors(self) -> dict[str, Tensor]:
        """Return all its tensors, by field."""
        names = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "W_skip")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> SAE:
        """Move every tensor; nothing is copied that is already there."""
        moved: dict[str, Any] = {name: t.to(device=device, dtype=dtype) for name, t in self.tensors().items()}
        return replace(self, **moved)

    def narrowed(self) -> SAE:
        """
        Return the same SAE with W_enc and W_dec in bf16, half as large; itself where that would change one of their numbers.

        What was stored in bf16, and into which nothing was folded, stays what it is.
        """
        encoder = exact_bf16(self.W_enc.T)
        decoder = None if encoder is None else exact_bf16(self.W_dec)
        return self if encoder is None or decoder is None else replace(self, W_enc=encoder.T, W_dec=decoder)

    def _activate(self, pre: Tensor) -> Tensor:
        if self.top_k is None:
            return torch.where(pre > self.threshold, pre, 0.0)
        size = pre.abs() if self.top_k.signed else pre
        largest = size.topk(min(self.top_k.k, pre.shape[-1]), dim=-1).indices
        kept = torch.zeros_like(pre).scatter_(-1, largest, pre.gather(-1, largest))
        return kept if self.top_k.signed else kept.clamp_min(0.0)
