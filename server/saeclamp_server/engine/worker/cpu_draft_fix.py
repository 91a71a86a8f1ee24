"""
Worker process: a work-around for drafts on a CPU, where a sampled request would spoil the answers of all.

Where drafts are verified, vLLM repeats each request's temperature, top_p and top_k for each of its drafts. Its kernel for
CPUs writes 64-bit integers, and what it is given is none: it fills a copy, and the logits of every draft, greedy requests'
too, are divided by whatever memory held before. That is so whenever one request of a step is sampled.
"""

from __future__ import annotations

import torch
from torch import Tensor


def repeat_sampling_parameters_of_drafts() -> None:
    """Put a function of ours into the place of vLLM's; idempotent."""
    from vllm.v1.sample import rejection_sampler

    rejection_sampler.expand_batch_to_tokens = expand_batch_to_tokens


def expand_batch_to_tokens(
    x: Tensor, cu_num_tokens: Tensor, num_tokens: int, replace_from: int = 0, replace_to: int = 0
) -> Tensor:
    """
    Repeat the number of each request for each of its tokens, and put another in the place of one of them.

    x:             (num_requests,), of any type
    cu_num_tokens: (num_requests,), tokens of the requests up to each, itself included
    returns:       (num_tokens,), of the same type
    """
    num_each = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    return torch.where(x == replace_from, replace_to, x).repeat_interleave(num_each, output_size=num_tokens)
