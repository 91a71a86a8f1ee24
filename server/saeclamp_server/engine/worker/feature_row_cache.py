"""
Worker process: the row cache, which has the rows of an SAE's features in use on the model's device. The whole SAE stays in
the host's memory.

A running request holds the rows of its features from when it comes until it goes; missing ones are copied in then, in place
of those that nobody has held for longest. `--max-features` bounds how many are in use at once, so it is the capacity.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saeclamp_saes import SAE
from saeclamp_server.engine.worker.device_copies import upload


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
        num_rows = min(capacity, whole.d_sae)
        self._feature_of = np.full(num_rows, -1, np.int64)
        """(num_rows,), feature of each row; -1 where the row is free."""
        self._num_holders = np.zeros(num_rows, np.int64)
        """(num_rows,), requests that hold each row."""
        self._given_back = np.full(num_rows, -1, np.int64)
        """(num_rows,), when the last holder of each row went; -1: it has had none."""
        self._now = 0
        self.sae = self._empty(num_rows, whole.b_dec.to(device))
        """The SAE that the tables go by, whose features are the rows of the cache."""

    @property
    def features(self) -> NDArray[np.int64]:
        """Return the features whose rows are in the cache."""
        return np.flatnonzero(self._row_of >= 0)

    @property
    def num_held(self) -> int:
        """Number of rows that somebody holds."""
        return int(np.count_nonzero(self._num_holders))

    def acquire(self, features: NDArray[np.int64]) -> NDArray[np.int64]:
        """Copy in missing rows of a request's features, hold them all, and return the rows, (num_features,)."""
        wanted = np.unique(features)
        missing = wanted[self._row_of[wanted] < 0]
        held = wanted[self._row_of[wanted] >= 0]
        self._num_holders[self._row_of[held]] += 1  # first, so that they are not given up
        if missing.size:
            rows = self._copy_in(missing)  # which may put larger arrays in the place of these
            self._num_holders[rows] += 1
        return self._row_of[features]

    def release(self, features: NDArray[np.int64]) -> None:
        """Give back what `acquire` took."""
        rows = self._row_of[np.unique(features)]
        self._num_holders[rows] -= 1
        self._now += 1
        self._given_back[rows] = self._now

    def _copy_in(self, missing: NDArray[np.int64]) -> NDArray[np.int64]:
        while np.count_nonzero(self._num_holders == 0) < len(missing):
            self._grow()
        idle = np.flatnonzero(self._num_holders == 0)
        # free rows come first, as -1 is the smallest
        rows = idle[np.argsort(self._given_back[idle], kind="stable")[: len(missing)]]
        given_up = self._feature_of[rows]
        self._row_of[given_up[given_up >= 0]] = -1
        self._row_of[missing], self._feature_of[rows] = rows, missing
        brought = self.whole.rows(torch.from_numpy(missing))
        here = self.sae.rows()
        to = upload(rows, self._device)
        for table, part in zip(here, brought, strict=True):
            table[to] = upload(part, self._device)
        return rows

    def _grow(self) -> None:
        """Double the capacity: requests whose clients went away run a few steps longer than they count as being in use."""
        num = min(2 * len(self._feature_of) or 1, self.whole.d_sae)
        larger = self._empty(num, self.sae.b_dec)
        for old, new in zip(self.sae.rows(), larger.rows(), strict=True):
            new[: len(old)] = old
        added = np.full(num - len(self._feature_of), -1, np.int64)
        self._feature_of = np.concatenate((self._feature_of, added))
        self._given_back = np.concatenate((self._given_back, added))
        self._num_holders = np.concatenate((self._num_holders, np.zeros_like(added)))
        self.sae = larger

    def _empty(self, num_rows: int, b_dec: Tensor) -> SAE:
        whole, device = self.whole, self._device
        dtype = whole.W_dec.dtype  # W_enc has the same
        return replace(
            whole,
            b_dec=b_dec,
            W_skip=None,  # it cancels in an edit
            W_enc=torch.zeros(num_rows, whole.d_in, dtype=dtype, device=device).T,
            b_enc=torch.zeros(num_rows, device=device),
            W_dec=torch.zeros(num_rows, whole.d_out, dtype=dtype, device=device),
            # infinity: a free row is never active
            threshold=torch.full((num_rows,), math.inf, device=device),
        )
