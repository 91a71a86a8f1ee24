"""
Worker process: the row cache, which has the rows of an SAE's features in use on the model's device. The whole SAE stays in
the host's memory.

The features that a step touches are known before it runs; missing ones are copied in then, in place of those that have not
been touched for longest. `--max-features` bounds how many are in use at once, so it is the capacity of the cache.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from saeclamp_saes import SAE


class FeatureRowCache:
    """Row cache of an SAE whose activations do not depend on each other."""

    def __init__(self, whole: SAE, capacity: int, device: torch.device) -> None:
        """
        whole:    in the host's memory
        capacity: number of rows to begin with
        Raises ValueError for an SAE that keeps the largest activations only.
        """
        if whole.top_k is not None:
            raise ValueError("Each activation of a TopK SAE depends on all others.")
        self.whole, self._device = whole, device
        self._row_of = np.full(whole.d_sae, -1, np.int64)
        """(d_sae,), row of each feature; -1 where it is not in the cache."""
        self._feature_of = np.full(min(capacity, whole.d_sae), -1, np.int64)
        """(num_rows,), feature of each row; -1 where the row is free."""
        self._last_touched = np.full(len(self._feature_of), -1, np.int64)
        """(num_rows,), number of the step that last touched each row; -1: none has."""
        self._step = 0
        self.sae = self._empty(len(self._feature_of))
        """The SAE that the op uses, whose features are the rows of the cache."""

    def ensure_resident(self, features: NDArray[np.int64]) -> None:
        """Copy in the missing rows of the features that the coming step touches. Rows of earlier steps may be given up."""
        wanted = np.unique(features)
        self._step += 1
        loaded = self._row_of[wanted]
        self._last_touched[loaded[loaded >= 0]] = self._step
        missing = wanted[loaded < 0]
        if missing.size:
            self._copy_in(missing)

    def rows(self, features: NDArray[np.int64]) -> NDArray[np.int64]:
        """Look up the rows of features that are in the cache."""
        return self._row_of[features]

    def _copy_in(self, missing: NDArray[np.int64]) -> None:
        while np.count_nonzero(self._last_touched < self._step) < len(missing):
            self._grow()
        # free rows come first, as -1 is the smallest
        rows = np.argsort(self._last_touched, kind="stable")[: len(missing)]
        given_up = self._feature_of[rows]
        self._row_of[given_up[given_up >= 0]] = -1
        self._row_of[missing], self._feature_of[rows], self._last_touched[rows] = rows, missing, self._step
        brought = self.whole.rows(torch.from_numpy(missing))
        here = self.sae.rows()
        for whole, part in zip(here, brought, strict=True):
            whole[torch.from_numpy(rows).to(self._device)] = part.to(self._device)

    def _grow(self) -> None:
        """Double the capacity: requests whose clients went away run a few steps longer than they count as being in use."""
        num = min(2 * len(self._feature_of) or 1, self.whole.d_sae)
        larger = self._empty(num)
        for old, new in zip(self.sae.rows(), larger.rows(), strict=True):
            new[: len(old)] = old
        added = np.full(num - len(self._feature_of), -1, np.int64)
        self._feature_of = np.concatenate((self._feature_of, added))
        self._last_touched = np.concatenate((self._last_touched, added))
        self.sae = larger

    def _empty(self, num_rows: int) -> SAE:
        whole, device = self.whole, self._device
        return replace(
            whole,
            b_dec=whole.b_dec.to(device),
            W_skip=None,  # it cancels in an edit
            W_enc=torch.zeros(num_rows, whole.d_in, device=device).T,
            b_enc=torch.zeros(num_rows, device=device),
            W_dec=torch.zeros(num_rows, whole.d_out, device=device),
            # infinity: a free row is never active
            threshold=torch.full((num_rows,), math.inf, device=device),
        )
