"""Worker process: recorder of a site's vectors, by which SAEs are verified in the running engine. Free of vLLM."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from saeclamp_server.engine.worker.device_copies import Fetch


class Recorded(NamedTuple):
    """Vectors of a site and their norms, token by token."""

    vectors: Tensor
    """(num_tokens, width) fp32; without width where only norms are kept"""
    norms: Tensor
    """(num_tokens,), of the vectors"""
    resid_norms: Tensor
    """(num_tokens,), of the residual stream there, or of the vectors where the stream is not at hand"""


class VectorRecorder:
    """Records every forward's vectors from when the worker starts it until they are taken; idle otherwise."""

    def __init__(self) -> None:
        self.is_recording = False
        self.norms_only = False
        """True if only norms are kept: the vectors of every layer would be too many."""
        self.rows = torch.empty(0, dtype=torch.int64)
        """(num_tokens,), the rows of the coming forward that are real tokens; set by the runner's adapter."""
        self._parts: list[Fetch] = []
        """Fields of `Recorded`, forward by forward."""

    def record(self, vectors: Tensor, resid_norms: Tensor) -> None:
        """Keep the vectors of one forward; the arguments are as `Recorded` has them, all with their width."""
        kept = vectors[:, : 0 if self.norms_only else None]
        self._parts.append(Fetch(Recorded(kept, vectors.norm(dim=1), resid_norms)))

    def take(self) -> Recorded | None:
        """Stop, return all vectors and norms since the start, and drop them; None where nothing was recorded."""
        self.is_recording = False
        parts, self._parts = [part.wait() for part in self._parts], []
        return Recorded(*map(torch.cat, zip(*parts, strict=True))) if parts else None
