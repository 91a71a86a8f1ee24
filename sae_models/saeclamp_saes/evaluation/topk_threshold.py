"""A threshold in place of TopK, so that an activation depends on its own feature alone and a clamp needs only its rows."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from saeclamp_saes.evaluation.interpretations import ENCODE_BYTES, token_chunks
from saeclamp_saes.sae import SAE


def estimate_threshold(sae: SAE, x: Tensor, *, encode_bytes: int = ENCODE_BYTES) -> float | None:
    """
    Find the threshold above which, on average, as many activations lie as the TopK keeps (k, unless some are negative).

    x:       (num_tokens, d_in)
    returns: in the units of the activations; None for an SAE that is no TopK, or a signed one, which has no such form
    """
    if sae.top_k is None or sae.top_k.signed:
        return None
    parts = token_chunks(x, sae, encode_bytes)
    kept = sum(int(sae.encode(part).count_nonzero()) for part in parts)
    relu = replace(sae, top_k=None, threshold=torch.zeros_like(sae.threshold))
    largest = torch.empty(0, device=x.device)
    for part in parts:
        values = torch.cat([largest, relu.encode(part).flatten()])
        largest = values.topk(min(kept + 1, values.numel())).values
    if kept == 0 or largest.numel() <= kept:
        return None
    # half way between, so that rounding moves neither across
    return float((largest[kept - 1].double() + largest[kept].double()) / 2)
