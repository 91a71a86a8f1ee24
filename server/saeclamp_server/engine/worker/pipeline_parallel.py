"""
Worker process: sends step outputs from one pipeline stage to the next, beside vLLM's hidden states.

Every stage plans the whole step, with the same rows at the same places, and runs the ops of its own layers. Later layers
need of earlier ones: activations, verdicts of rules, first positions of aborting rules, and the activations of SAEs that
write at a later stage. The step report, which the last stage makes, also needs the strongest features and the items.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from saeclamp_saes.clamping import ReadActs
from saeclamp_server.engine.worker.ops import LoadedSAE
from saeclamp_server.engine.worker.step_outputs import StepOutputs, TopFeatures

FLOATS = "saeclamp_floats"
INTS = "saeclamp_ints"
"""Names of the two tensors that are sent. They are flat, because vLLM sends few at once between processes on a CPU."""


class StageBoundary:
    """Boundary between two pipeline stages. Both sides have the same plan, so what is sent needs no shapes."""

    def __init__(self, layer: int, saes: Sequence[LoadedSAE], step_outputs: StepOutputs) -> None:
        """`layer` is the first one behind the boundary."""
        self._read = [loaded for loaded in saes if loaded.sae.reads[-1].layer < layer]
        self._crossing = [loaded for loaded in self._read if any(site.layer >= layer for site in loaded.sae.writes)]
        self._step_outputs = step_outputs

    def pack(self, first_aborts: Tensor) -> dict[str, Tensor]:
        """
        Pack the step outputs of the stages in front of the boundary, by the tensors' names.

        first_aborts: (num_rules,) int64, first position at which each of the step's aborting rules held
        """
        floats, ints = [self._step_outputs.acts, self._step_outputs.verdicts, self._step_outputs.items], [first_aborts]
        for loaded in self._with_edits():
            assert loaded.before is not None, "an SAE reads before it writes"
            floats += loaded.before
        for loaded in self._with_top():
            top = self._step_outputs.top[loaded.name]
            floats.append(top.acts)
            ints.append(top.features)
        return {
            FLOATS: torch.cat([part.flatten() for part in floats]),
            INTS: torch.cat([part.flatten() for part in ints]),
        }

    def unpack(self, sent: dict[str, Tensor], num_rules: int) -> Tensor:
        """
        Take our tensors out of `sent`, and put them into the step outputs of this stage; return `first_aborts` as in `pack`.

        The step inputs must have been built. Raises RuntimeError when the other side had another plan.
        """
        # copies: the next step may be received into the same memory
        floats, ints = _FlatTensorReader(sent.pop(FLOATS).clone()), _FlatTensorReader(sent.pop(INTS).clone())
        self._step_outputs.acts = floats.take(len(self._step_outputs.acts))
        self._step_outputs.verdicts = floats.take(len(self._step_outputs.verdicts))
        self._step_outputs.items = floats.take(self._step_outputs.items.numel()).view(-1, 2)
        first_aborts = ints.take(num_rules)
        for loaded in self._with_edits():
            num_pairs = len(loaded.step.slot)  # type: ignore[union-attr]
            loaded.before = ReadActs(floats.take(num_pairs), floats.take(num_pairs))
        for loaded in self._with_top():
            top = loaded.step.top  # type: ignore[union-attr]
            shape = len(top.token), min(top.top_k, loaded.whole.d_sae)  # type: ignore[union-attr]
            acts, features = (part.take(shape[0] * shape[1]).view(shape) for part in (floats, ints))
            self._step_outputs.top[loaded.name] = TopFeatures(acts, features)
        if not floats.is_empty or not ints.is_empty:
            raise RuntimeError("Two pipeline stages have planned a step differently.")
        return first_aborts

    def _with_edits(self) -> list[LoadedSAE]:
        return [loaded for loaded in self._crossing if loaded.step is not None and len(loaded.step.slot) > 0]

    def _with_top(self) -> list[LoadedSAE]:
        return [loaded for loaded in self._read if loaded.step is not None and loaded.step.top is not None]


class _FlatTensorReader:
    """Takes a flat tensor apart, from its beginning."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._next = tensor, 0

    @property
    def is_empty(self) -> bool:
        return self._next == len(self._tensor)

    def take(self, num: int) -> Tensor:
        self._next += num
        return self._tensor[self._next - num : self._next]
