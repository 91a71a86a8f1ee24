"""
Worker process: the custom op that reads activations and edits the model's vectors, and the state that it uses.

One opaque op per hooked site stays in the compiled graph as a call. What it does in a step is in the tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from vllm.utils.torch_utils import direct_register_custom_op

from saeclamp_saes import Site
from saeclamp_server.engine.worker.executor import Executor
from saeclamp_server.engine.worker.loaded_sae import LoadedSAE
from saeclamp_server.engine.worker.prompt_means import PromptMeanRecorder
from saeclamp_server.engine.worker.site_vectors import SiteVectors
from saeclamp_server.engine.worker.top_features import TopFeatureFinder
from saeclamp_server.engine.worker.vector_recorder import VectorRecorder


@dataclass
class HookState:
    """State of the op at one site."""

    site: Site
    executor: Executor
    top_features: TopFeatureFinder
    prompt_means: PromptMeanRecorder
    """Records vectors of requests that ask for it. Like the executor and the finder, one for all sites of the worker."""
    reads: Sequence[LoadedSAE]
    """SAEs that read their activations here."""
    whole_stream: bool
    """True if the vector is the sum of both tensors; else it is `hidden` alone."""
    sink_norm: Tensor
    """() fp32, norm above which a vector is that of a sink"""
    norm_eps: float | None = None
    """Epsilon of the norm, where the vector is `hidden` over its root mean square; else None."""
    reserves_scratch: bool = False
    """True while vLLM measures how much memory a step takes: then as much as a steered one takes beside it is taken."""
    recorder: VectorRecorder = field(default_factory=VectorRecorder)
    """Records vectors while the SAEs are verified, before the server listens."""


SCRATCH_BYTES = 256 << 20
"""
Memory that steering takes in a step, at most, beside its tables and SAEs, which are there before vLLM measures.
`benchmarks/peak_memory.py` has the figures; the kernels for GPUs take hardly any, whole SAEs that are run in parts most.
"""

_STATES: dict[int, HookState] = {}
"""Sites' states, by number. An op takes tensors and numbers only, so it finds its state here. Written by `register_site`."""


def register_site(number: int, state: HookState) -> None:
    """Set the state of the op at the site with this number, in this process."""
    _STATES[number] = state


def steer(hidden: Tensor, residual: Tensor | None, number: int) -> None:
    """
    Read activations at a site and edit its vectors in place, on the summand `hidden`.

    hidden:   (num_tokens, width), the model's dtype
    residual: (num_tokens, width) or None; where the site is the residual stream, the vector is `hidden + residual`
    """
    state = _STATES[number]
    if state.reserves_scratch:
        # vLLM sees the peak, and leaves room for it
        torch.empty(SCRATCH_BYTES, dtype=torch.uint8, device=hidden.device)
    vectors = SiteVectors(hidden, residual, state.whole_stream, state.norm_eps)
    # first what only looks: it takes the vectors before this site's edits
    if state.recorder.is_recording:
        x = vectors.gather(state.recorder.rows)
        state.recorder.record(x, vectors.resid_norms(x, state.recorder.rows))
    for take in state.prompt_means.takes.get(str(state.site), ()):
        for part in vectors.parts(len(take.rows)):
            x = vectors.gather(take.rows[part])
            state.prompt_means.record(take.key, x, is_sink=x.norm(dim=1) > state.sink_norm)
    for loaded in state.reads:
        if loaded.name in state.top_features.wanted:
            state.top_features.find(loaded.name, loaded.whole, vectors, state.sink_norm)
    state.executor.judge(number, vectors)
    state.executor.edit(number, vectors)


def _steer_fake(hidden: Tensor, residual: Tensor | None, number: int) -> None:
    return None


# declared as changing `hidden` at every site: an op that only reads would be removed from the graph as dead
direct_register_custom_op("saeclamp_steer", steer, mutates_args=["hidden"], fake_impl=_steer_fake)

steer_op = torch.ops.vllm.saeclamp_steer
"""`steer` as hooks must call it, so that a compiled graph keeps it as one opaque call."""
