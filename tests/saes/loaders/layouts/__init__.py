"""Small random checkpoints in the families' own layouts, one family a file, each with its published equations in fp64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor


class Written(NamedTuple):
    """A checkpoint on disk, and what it computes according to its family."""

    path: Path
    """What a user would name."""
    encode: Callable[[Tensor], Tensor]
    """(num_tokens, d_in) fp64 -> (num_tokens, d_sae), in the family's own units"""
    decode: Callable[[Tensor, Tensor], Tensor]
    """(num_tokens, d_sae) activations, (num_tokens, d_in) what was encoded -> (num_tokens, d_out)"""


def tokens(d_in: int, num_tokens: int = 200, scale: float = 1.0, seed: int = 7) -> Tensor:
    """Random vectors with a mean that is not zero, as streams have: (num_tokens, d_in) fp64."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(num_tokens, d_in, generator=generator, dtype=torch.float64)
    return scale * (noise + 0.3 * torch.randn(d_in, generator=generator, dtype=torch.float64) + 0.2)
