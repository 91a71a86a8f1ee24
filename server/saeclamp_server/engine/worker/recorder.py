"""Worker process: a recorder of the model's vectors at one site, for verifying SAEs in the running engine. Free of vLLM."""

from __future__ import annotations

import torch
from torch import Tensor

Recorded = tuple[Tensor, Tensor]
"""Vectors and lengths, as `VectorRecorder.record` has them."""


class VectorRecorder:
    """Idle unless the worker starts it; then every forward's vectors are kept until they are taken."""

    def __init__(self) -> None:
        self.is_recording = False
        self.norms_only = False
        """Whether only lengths are kept: the vectors of every layer would be too many."""
        self.rows = torch.empty(0, dtype=torch.int64)
        """(num_tokens,), the rows of the coming forward that are real tokens; set by the runner's adapter."""
        self._vectors: list[Tensor] = []
        self._norms: list[Tensor] = []

    def record(self, vectors: Tensor, norms: Tensor) -> None:
        """
        Keep the vectors of one forward, (num_tokens, width) fp32.

        norms: (num_tokens,) of the stream, or of the site's vector where the stream is not at hand
        """
        self._vectors.append(vectors[:, : 0 if self.norms_only else None].cpu())
        self._norms.append(norms.cpu())

    def take(self) -> Recorded | None:
        """Stop, return all vectors and lengths since the start, and forget them; None where nothing was recorded."""
        self.is_recording = False
        recorded = (torch.cat(self._vectors), torch.cat(self._norms)) if self._vectors else None
        self._vectors, self._norms = [], []
        return recorded
