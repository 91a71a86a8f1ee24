"""
Worker process: which of a step's tokens stay where some of them were drafts, found on the device, for vLLM's V2 runner.

A draft that the model has accepted may still be no part of the answer: of several tokens that are sampled at once, the
scheduler drops those behind one that ends the answer. Without drafts these would not have been computed, so what is done at
them is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import triton
from torch import Tensor

from saeclamp_server.engine.worker import step_end_kernels
from saeclamp_server.engine.worker.device_copies import upload
from saeclamp_server.engine.worker.program_layout import FOREVER
from saeclamp_server.engine.worker.sampled_tokens import AnswerEnd, SampledTokens


class _Ends(NamedTuple):
    stop_ids: Tensor
    """(num_requests, num_stops) int64; -2 where a request has fewer"""
    num_stops: int
    max_position: Tensor
    """(num_requests,) int64, of an answer's last token, which is sampled and not computed"""


class _Sampled(NamedTuple):
    row: Tensor
    tokens: Tensor
    stride: int
    num: Tensor


class DraftSettlement:
    """Settlement of the drafts of one worker."""

    def __init__(self, num_programs: int, device: torch.device) -> None:
        self._device = device
        self._kept_to = torch.full((num_programs,), FOREVER, dtype=torch.int64, device=device)
        self._batch: tuple[Tensor, _Ends] | None = None
        """Programs of the last batch, and what ends its answers."""

    def find_kept(self, program: Tensor, ends: Callable[[], Sequence[AnswerEnd]], sampled: SampledTokens) -> Tensor:
        """
        Find behind which tokens those of a step do not stay.

        program: (num_requests,) int32, the program of each request of the batch; -1: it has none. The same tensor as long
                 as the batch is the same
        ends:    looks up what ends the answers to these requests
        returns: (num_programs,) int64, as `Executor.settle` takes it
        """
        if self._batch is None or self._batch[0] is not program:
            self._batch = program, self._upload(ends())
        own = self._batch[1]
        self._kept_to.fill_(FOREVER)
        step_end_kernels.find_kept[(len(program),)](
            program, own, _Sampled(sampled.row, sampled.tokens, sampled.tokens.stride(0), sampled.num),
            sampled.num_computed, self._kept_to,
            MAX_SAMPLED=triton.next_power_of_2(sampled.tokens.shape[1]),
            MAX_STOPS=triton.next_power_of_2(own.num_stops),
        )  # fmt: skip
        return self._kept_to

    def _upload(self, ends: Sequence[AnswerEnd]) -> _Ends:
        num_stops = max([1, *(len(end.stop_ids) for end in ends)])
        stop_ids = np.full((len(ends), num_stops), -2, np.int64)
        for nth, end in enumerate(ends):
            stop_ids[nth, : len(end.stop_ids)] = sorted(end.stop_ids)
        max_position = np.array([end.max_len - 1 for end in ends], np.int64)
        return _Ends(upload(stop_ids, self._device), num_stops, upload(max_position, self._device))
