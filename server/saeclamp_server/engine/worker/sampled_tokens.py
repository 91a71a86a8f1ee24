"""
Worker process: the tokens that a step samples, several at once where some were drafts, and what ends an answer among them.
Free of vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from saeclamp_server.engine.worker.program_layout import FOREVER


class AnswerEnd(NamedTuple):
    """End of the answer to a request, as in vLLM's `v1.core.sched.utils.check_stop`."""

    stop_ids: frozenset[int] = frozenset()
    max_len: int = FOREVER
    """Tokens of the prompt and the answer. The context's length is no bound here: no drafts are scheduled beyond it."""

    @classmethod
    def from_params(cls, params: Any, prompt_len: int) -> AnswerEnd:
        """`params` are vLLM's sampling parameters; None: the request generates nothing."""
        if params is None:
            return cls()
        # not `all_stop_token_ids`, where the end of text is even if it is to be ignored
        stop_ids = {*(params.stop_token_ids or ()), *([] if params.eos_token_id is None else [params.eos_token_id])}
        return cls(frozenset(stop_ids), FOREVER if params.max_tokens is None else prompt_len + params.max_tokens)

    def num_kept(self, sampled: Sequence[int], len_before: int) -> int:
        """Count the tokens that stay of those sampled at once, behind `len_before` tokens."""
        for number, token in enumerate(sampled, 1):
            if token in self.stop_ids or len_before + number >= self.max_len:
                return number
        return len(sampled)


class SampledTokens(NamedTuple):
    """Tokens that vLLM has sampled in a step, and booked; on the device."""

    row: Tensor
    """(num_requests,) int64, row of each request in vLLM's own tables"""
    tokens: Tensor
    """(num_requests, 1 + number of drafts or fewer) int64"""
    num: Tensor
    """(num_requests,) int32, how many of these vLLM keeps: 0 where only a part of the prompt was computed"""
    num_computed: Tensor
    """(number of vLLM's rows,) int32, position behind the last token that vLLM keeps"""
