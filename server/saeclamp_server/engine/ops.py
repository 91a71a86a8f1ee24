"""
The custom op that edits the stream, and the state it reads.

One opaque op per hooked layer stays in the compiled graph as a call; what it does in a step is decided by the tensors in
its site's state, which the worker fills before each forward.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from vllm.utils.torch_utils import direct_register_custom_op

from saeclamp_saes.clamping import Edits, FeatureRows, Moved, residual_delta
from saeclamp_server.engine.ledger import Ledger


@dataclass(frozen=True)
class Step:
    """What one site does in the coming forward. Tensors on the model's device."""

    tokens: Tensor
    """(num_tokens,) int64, the rows of the stream that are touched"""
    edits: Edits
    slot: Tensor
    """(num_pairs,) int64, ledger slot of each pair"""
    counts: Tensor
    """(num_pairs, 2) fp32: counts as a prompt position, as a generated position"""


@dataclass
class SiteState:
    """What the op at one site reads. `step` is None where no token is touched."""

    rows: FeatureRows
    ledger: Ledger
    step: Step | None = None


_STATES: dict[int, SiteState] = {}
"""By layer. The op is a function of tensors and numbers only, so its state is found here; `bind` is the only writer."""


def bind(layer: int, state: SiteState) -> None:
    """Make `state` what the op at `layer` reads, in this process."""
    _STATES[layer] = state


def steer(hidden: Tensor, residual: Tensor | None, layer: int) -> None:
    """
    Edit the stream in place, on the summand `hidden`.

    hidden:   (num_tokens, d_in), the model's dtype
    residual: (num_tokens, d_in) or None; the stream is `hidden + residual`
    """
    state = _STATES[layer]
    step = state.step
    if step is None:
        return
    touched = hidden[step.tokens].float()
    resid = touched if residual is None else touched + residual[step.tokens].float()
    delta, moved = residual_delta(resid, state.rows, step.edits)
    hidden.index_copy_(0, step.tokens, (touched + delta).to(hidden.dtype))
    _record(state.ledger, step, moved)


def _record(ledger: Ledger, step: Step, moved: Moved) -> None:
    counts = step.counts * step.edits.live[:, None]
    measured = counts.sum(dim=1)
    sums = torch.stack((counts[:, 0], counts[:, 1], moved.acts * measured, moved.dose * measured), dim=1)
    peaks = torch.stack((moved.acts * measured, moved.dose * measured), dim=1)
    ledger.add(step.slot, sums, peaks)


def _steer_fake(hidden: Tensor, residual: Tensor | None, layer: int) -> None:
    return None


direct_register_custom_op("saeclamp_steer", steer, mutates_args=["hidden"], fake_impl=_steer_fake)

steer_op = torch.ops.vllm.saeclamp_steer
"""`steer` as hooks must call it, so that a compiled graph keeps it as one opaque call."""
