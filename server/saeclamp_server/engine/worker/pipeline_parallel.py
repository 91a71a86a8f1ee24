"""
Worker process: sends what was read and judged from one pipeline stage to the next, beside vLLM's hidden states.

Every stage has the same requests under the same numbers, and runs the ops of its own layers. Later layers need of earlier
ones: activations, verdicts of rules, the positions since which lasting rules hold, and the activations of SAEs that write at
a later stage. The step report, which the last stage makes, also needs the strongest features and the edits that are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saeclamp_server.engine.worker.device_copies import upload
from saeclamp_server.engine.worker.loaded_sae import LoadedSAE
from saeclamp_server.engine.worker.program_tables import ProgramTables
from saeclamp_server.engine.worker.step_tables import StepTables
from saeclamp_server.engine.worker.top_features import TopFeatureFinder, TopFeatures

FLOATS = "saeclamp_floats"
INTS = "saeclamp_ints"
"""Names of the two tensors that are sent. They are flat, because vLLM sends few at once between processes on a CPU."""


class StepContents(NamedTuple):
    """Contents of the tables in a step, as all stages know them on the host."""

    programs: Sequence[int] = ()
    """Numbers of the step's programs, in the order of the batch."""
    num_reads: int = 0
    """Columns of activations that are used."""
    shows_edits: bool = False


class StageBoundary:
    """Boundary between two pipeline stages. Both sides have the same step, so what is sent needs no shapes."""

    def __init__(
        self,
        layer: int,
        saes: Sequence[LoadedSAE],
        programs: ProgramTables,
        step: StepTables,
        top_features: TopFeatureFinder,
    ) -> None:
        """`layer` is the first one behind the boundary."""
        self._read = [loaded for loaded in saes if loaded.sae.reads[-1].layer < layer]
        self._carries = any(
            loaded.sae.writes != loaded.sae.reads and any(site.layer >= layer for site in loaded.sae.writes)
            for loaded in self._read
        )
        self._programs, self._step, self._top_features = programs, step, top_features

    def pack(self, contents: StepContents) -> dict[str, Tensor]:
        """Pack what the stages in front of the boundary have found, by the tensors' names."""
        floats, ints = self._tables(contents)
        top = [self._top_features.found[name] for name in self._with_top()]
        return {
            FLOATS: torch.cat([part.flatten() for part in (*floats, *(found.acts for found in top))]),
            INTS: torch.cat([part.flatten() for part in (*ints, *(found.features for found in top))]),
        }

    def unpack(self, sent: dict[str, Tensor], contents: StepContents) -> None:
        """
        Take our tensors out of `sent`, and put them into the tables of this stage, whose step has been mapped.

        Raises RuntimeError when the other side had another step.
        """
        # copies: the next step may be received into the same memory
        floats, ints = _FlatTensorReader(sent.pop(FLOATS).clone()), _FlatTensorReader(sent.pop(INTS).clone())
        own_floats, (_, _, own_held) = self._tables(contents)
        for table in own_floats:
            table.copy_(floats.take(table.shape))
        self._step.verdicts[: self._step.num_tokens] = ints.take((self._step.num_tokens,)).int()
        self._step.is_edited[: self._step.num_tokens] = ints.take((self._step.num_tokens,)).bool()
        # a rule is judged at one stage; the others hear of it here
        held = torch.minimum(own_held, ints.take(own_held.shape))
        self._programs.first_held.index_copy_(0, self._numbers(contents), held.int())
        for name in self._with_top():
            wanted = self._top_features.wanted[name]
            (whole,) = [loaded.whole for loaded in self._read if loaded.name == name]
            shape = len(wanted.rows), min(wanted.top_k, whole.d_sae)
            self._top_features.found[name] = TopFeatures(floats.take(shape), ints.take(shape))
        if not floats.is_empty or not ints.is_empty:
            raise RuntimeError("Two pipeline stages have mapped a step differently.")

    def _tables(self, contents: StepContents) -> tuple[list[Tensor], list[Tensor]]:
        step, num = self._step, self._step.num_tokens
        floats = [
            step.acts[:num, : contents.num_reads],
            step.items[: num if contents.shows_edits else 0],
            step.carried[: num if self._carries else 0],
        ]
        held = self._programs.first_held.index_select(0, self._numbers(contents))
        return floats, [step.verdicts[:num].long(), step.is_edited[:num].long(), held.long()]

    def _numbers(self, contents: StepContents) -> Tensor:
        return upload(np.array(contents.programs, np.int64), self._programs.device)

    def _with_top(self) -> list[str]:
        return [loaded.name for loaded in self._read if loaded.name in self._top_features.wanted]


class _FlatTensorReader:
    """Takes a flat tensor apart, from its beginning."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._next = tensor, 0

    @property
    def is_empty(self) -> bool:
        return self._next == len(self._tensor)

    def take(self, shape: Sequence[int]) -> Tensor:
        num = torch.Size(shape).numel()
        self._next += num
        return self._tensor[self._next - num : self._next].view(*shape)
