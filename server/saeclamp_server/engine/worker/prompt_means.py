"""Worker process: prompt means: the mean of a site's vectors at tokens of one request's prompt."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saeclamp_server.engine.worker.device_copies import Fetch, upload

MAX_RECORDS = 1024
"""Records that wait to be fetched, at most; the oldest make room, as clients may have gone. 32 MB at width 4096."""


@dataclass(frozen=True)
class RecordedRows:
    """Rows of the coming forward that are added to one request's record."""

    key: str
    rows: Tensor
    """(num_tokens,) int64"""


class PromptMeanRecorder:
    """Recorder of prompt means, one per worker."""

    def __init__(self, is_special: Tensor, device: torch.device) -> None:
        """`is_special` is (vocab_size,) bool, on the host."""
        self._is_special, self._device = is_special.numpy(), device
        self._records = OrderedDict[str, list[Fetch]]()
        """Per part of a prompt: sums over ordinary tokens and over sinks, (width,) fp64, and their numbers."""
        self.takes: dict[str, list[RecordedRows]] = {}
        """Rows to be recorded in the coming forward, by the site's name."""

    def begin_step(self) -> None:
        """Drop the last forward's rows."""
        self.takes = {}

    def point(self, asked: Mapping[str, str], prompt_ids: Sequence[int], row: int, num_tokens: int, first: int) -> None:
        """
        Choose the rows of a request that are recorded in the coming forward.

        asked:      fields of `api.model_client.PromptRecording`
        row:        row of the request's first token in the batch
        num_tokens: number of its tokens in this forward
        first:      position of the first of these in the request
        """
        if first == 0:  # it begins, or begins again after a preemption, which would count tokens twice
            self._records.pop(asked["key"], None)
        positions = chosen_positions(prompt_ids, asked["tokens"], self._is_special)
        rows = positions[(positions >= first) & (positions < first + num_tokens)] - first + row
        if len(rows):
            take = RecordedRows(asked["key"], upload(rows, self._device))
            self.takes.setdefault(asked["site"], []).append(take)

    def record(self, key: str, vectors: Tensor, is_sink: Tensor) -> None:
        """
        Add vectors to a record.

        vectors: (num_tokens, width) fp32
        is_sink: (num_tokens,) bool, by the vector's length
        """
        # fp64, so that a prompt has the same mean, to fp32, in however many parts it is computed
        all_of, ordinary = vectors.double(), ~is_sink
        sums = [all_of.where(mask[:, None], 0.0).sum(dim=0) for mask in (ordinary, is_sink)]
        self._records.setdefault(key, []).append(Fetch([*sums, ordinary.sum(), is_sink.sum()]))
        while len(self._records) > MAX_RECORDS:
            self._records.popitem(last=False)

    def fetch(self, keys: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Yield, and drop, the means of those records that are here: (width,) fp64, as bytes."""
        for key in keys:
            if key in self._records:
                parts = zip(*(part.wait() for part in self._records.pop(key)), strict=True)
                total, of_sinks, num, num_sinks = (torch.stack(column).sum(dim=0) for column in parts)
                # sinks count only where there is nothing else
                mean = total / num if num else of_sinks / num_sinks
                yield key, mean.numpy().tobytes()


def chosen_positions(
    ids: Sequence[int], tokens: str, is_special: np.ndarray[Any, np.dtype[np.bool_]]
) -> np.ndarray[Any, Any]:
    """
    Choose positions of a prompt: its last, or all that are neither special nor the first, which is a sink.

    returns: (num_positions,) int64
    """
    last = np.array([len(ids) - 1], np.int64)
    if tokens == "last":
        return last
    ordinary = np.flatnonzero(~is_special[np.array(ids, np.int64)])
    ordinary = ordinary[ordinary > 0]
    return ordinary if len(ordinary) else last
