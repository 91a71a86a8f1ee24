"""
The logit lens: the amount that a direction of the residual stream adds to each token's logit, by the direct path alone.

The final norm divides by a norm that depends on the token, so values are known up to that common factor, and only their
order means something. Its gain is folded in, and a layer norm's centring too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from saeclamp_saes.errors import LabelError
from saeclamp_saes.lm.architectures import LAYOUTS, norm_gain
from saeclamp_saes.sae import SAE

IN_STREAM = ("embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
"""Points whose vectors are the residual stream, or are added to it as they are."""


def writes_to_resid(model: nn.Module, sae: SAE) -> bool:
    """Tell whether the SAE writes at one site, to the residual stream or to vectors that are added to it."""
    layout = LAYOUTS[type(model).__name__]
    same = {"attn_out_raw": layout.attn_proj == layout.attn_out, "mlp_out_raw": layout.mlp == layout.mlp_out}
    return len(sae.writes) == 1 and (sae.site.point in IN_STREAM or same.get(sae.site.point, False))


def edits_resid(sae: SAE) -> bool:
    """Tell whether the SAE reads and writes the residual stream at one site, so that a clamp can be tried by itself."""
    points: tuple[str, ...] = ("embed", "resid_pre", "resid_mid", "resid_post")
    return sae.kind == "sae" and sae.reads == sae.writes and len(sae.writes) == 1 and sae.site.point in points


class LogitLens:
    """A model's final norm and unembedding."""

    def __init__(self, model: nn.Module, num_tokens: int) -> None:
        """
        Read the weights.

        num_tokens: size of the tokenizer; the rows of a vocabulary that is padded beyond it stand for no tokens
        Raises LabelError for a model whose final norm is not known.
        """
        name = type(model).__name__
        if name not in LAYOUTS:
            raise LabelError(f"It is not known where the final norm of a {name} is; known: {', '.join(LAYOUTS)}.")
        norm = model.get_submodule(LAYOUTS[name].final_norm)
        self._centers = isinstance(norm, nn.LayerNorm)
        self._gain = norm_gain(norm, torch.float32)
        self._unembedding: Tensor = model.get_output_embeddings().weight[:num_tokens].float()  # type: ignore[operator]

    @property
    def num_tokens(self) -> int:
        return len(self._unembedding)

    @torch.no_grad()
    def logits(self, directions: Tensor) -> Tensor:
        """
        Apply the lens.

        directions: (n, width) fp32, in the residual stream
        returns:    (n, num_tokens) fp32, up to a factor
        """
        if self._centers:
            directions = directions - directions.mean(dim=1, keepdim=True)
        return (directions * self._gain) @ self._unembedding.T
