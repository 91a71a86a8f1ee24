"""One threshold for all features in place of a choice within the batch, so that a token's activations are its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from saeclamp_saes.errors import TrainingError
from saeclamp_saes.evaluation.interpretations import token_chunks
from saeclamp_saes.sae import SAE

Chunks = Callable[[], Iterator[Tensor]]
"""Yields the held-out vectors, (n, d_in) fp32 each, anew each time it is called."""
HALF = 1 << 16
"""Values of one half of the bits of an fp32 number."""


def fit_threshold(sae: SAE, chunks: Chunks, k: int) -> SAE:
    """
    Set the threshold that leaves k active features a token, on average over the held-out vectors.

    It is half way between the last activation that is kept and the first that is not, so that rounding moves neither across.
    Both are found exactly, and in little memory, however many activations there are: positive fp32 numbers are ordered as
    their bits are, so the upper half of one's bits is counted out in one pass, and the lower half in another.
    Where fewer activations are positive than that, all positive ones are kept, as they are in training.
    Raises TrainingError where none is.
    """
    plain = replace(sae, threshold=torch.zeros_like(sae.threshold))
    wanted = k * sum(len(chunk) for chunk in chunks())
    uppers = _counts(plain, chunks, lambda bits: bits // HALF)
    num_positive = int(uppers.sum())
    if not num_positive:
        raise TrainingError("No feature is active on any held-out token: train longer, or with another learning rate.")
    if num_positive < wanted:
        return plain

    def largest(nth: int) -> float:
        upper, above = _last(uppers, nth)
        lowers = _counts(plain, chunks, lambda bits: bits[bits // HALF == upper] % HALF)
        lower, _ = _last(lowers, nth - above)
        return float(torch.tensor(upper * HALF + lower, dtype=torch.int32).view(torch.float32))

    kept = largest(wanted)
    left_out = largest(wanted + 1) if num_positive > wanted else 0.0
    below = torch.nextafter(torch.tensor(kept), torch.tensor(0.0))  # where the two are neighbours
    return replace(sae, threshold=torch.full_like(sae.threshold, min((kept + left_out) / 2, float(below))))


def _counts(sae: SAE, chunks: Chunks, part: Callable[[Tensor], Tensor]) -> Tensor:
    """Count positive activations by a half of their bits, which `part` takes from int32: (65536,) int64."""
    counts = torch.zeros(HALF, dtype=torch.int64)
    for chunk in chunks():
        for x in token_chunks(chunk.to(sae.W_enc.device), sae):
            acts = sae.encode(x)
            bits = acts[acts > 0].view(torch.int32)
            counts += torch.bincount(part(bits), minlength=HALF).cpu()
    return counts


def _last(counts: Tensor, wanted: int) -> tuple[int, int]:
    """Return the index of the count with the `wanted`-th largest, and the sum of the counts above it."""
    from_above = counts.flip(0).cumsum(0)
    index = int(torch.searchsorted(from_above, wanted))
    return HALF - 1 - index, int(from_above[index] - counts.flip(0)[index])
