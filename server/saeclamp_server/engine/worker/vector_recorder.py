"""Worker process: recorder of a site's vectors, by which SAEs are verified in the running engine. Free of vLLM."""

from __future__ import annotations

import torch
from torch import Tensor

from saeclamp_server.engine.worker.device_copies import Fetch

Recorded = tuple[Tensor, Tensor]
"""Vectors (num_tokens, width) and norms (num_tokens,), as `VectorRecorder.record` takes them."""


class VectorRecorder:
    """Records every forward's vectors from when the worker starts it until they are taken; idle otherwise."""

    def __init__(self) -> None:
        self.is_recording = False
        self.norms_only = False
        """True if only norms are kept: the vectors of every layer would be too many."""
        self.rows = torch.empty(0, dtype=torch.int64)
        """(num_tokens,), the rows of the coming forward that are real tokens; set by the runner's adapter."""
        self._parts: list[Fetch] = []
        """Vectors and norms of each forward."""

    def record(self, vectors: Tensor, norms: Tensor) -> None:
        """
        Keep the vectors of one forward, (num_tokens, width) fp32.

        norms: (num_tokens,) of the residual stream, or of the site's vector where the stream is not at hand
        """
        self._parts.append(Fetch([vectors[:, : 0 if self.norms_only else None], norms]))

    def take(self) -> Recorded | None:
        """Stop, return all vectors and norms since the start, and drop them; None where nothing was recorded."""
        self.is_recording = False
        parts = [part.wait() for part in self._parts]
        self._parts = []
        return (torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])) if parts else None
