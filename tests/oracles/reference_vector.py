"""The oracle's vector: the projection of the stream on a direction, written the obvious way. See `reference`."""

from __future__ import annotations

import torch
from tests.oracles.reference_sae import ReferenceSAE
from torch import Tensor


class ReferenceVector(ReferenceSAE):
    """A dictionary of one feature, whose activation is how often the direction is in the stream."""

    def __init__(self, numbers: Tensor, sign: int, hook: str) -> None:
        self.direction = sign * numbers.float()
        self.reads = self.writes = hook

    def encode(self, x: Tensor) -> Tensor:
        return ((x @ self.direction) / (self.direction @ self.direction))[..., None]

    def decode(self, acts: Tensor, x: Tensor) -> Tensor:
        return acts * self.direction

    def to_jump(self, x: Tensor) -> Tensor:
        return torch.full((*x.shape[:-1], 1), float("inf"))
