"""
From worker process to EngineCore, with each step's sampled tokens: failures, readouts, and where rules end an answer.

Attributes on vLLM's own messages carry it, so it arrives in order and costs no call of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WIPED = "saeclamp_wiped"
"""Attribute of vLLM's `SchedulerOutput`: ids of the KV blocks that the worker must zero before this step."""

ATTRIBUTE = "saeclamp_step_reports"
"""Attribute of vLLM's `ModelRunnerOutput`: the `RequestStepReport` of each request that has one, by request id."""


@dataclass(frozen=True)
class ReadoutChunk:
    """Readout of some positions of a request, ascending; one entry per position in each field."""

    positions: list[int]
    acts: list[list[float | None]]
    """(num_positions, num_features): activations of the named features; None at special tokens that are left out."""
    top: dict[str, list[list[tuple[int, float]] | None]]
    """(index, activation) of the strongest features that are active, by SAE and per position; None as in `acts`."""
    edits: list[list[tuple[int, float, float]]]
    """Per position: (number of the edit, activation before, dose) of the edits that were made; empty unless itemised."""

    def between(self, start: int, end: int | None) -> ReadoutChunk:
        """Select the positions from `start` (included) to `end` (excluded; None: without end)."""
        kept = [n for n, at in enumerate(self.positions) if at >= start and (end is None or at < end)]
        return ReadoutChunk(
            [self.positions[n] for n in kept],
            [self.acts[n] for n in kept],
            {sae: [rows[n] for n in kept] for sae, rows in self.top.items()},
            [self.edits[n] for n in kept],
        )

    @classmethod
    def concat(cls, parts: Sequence[ReadoutChunk]) -> ReadoutChunk:
        """Concatenate chunks, at least one, in the order of their positions."""
        # every chunk of a request names all SAEs of its readout, also where it shows none of their features
        saes = dict.fromkeys(sae for part in parts for sae in part.top)
        return cls(
            [at for part in parts for at in part.positions],
            [acts for part in parts for acts in part.acts],
            {sae: [row for part in parts for row in part.top[sae]] for sae in saes},
            [edits for part in parts for edits in part.edits],
        )


@dataclass(frozen=True)
class RequestStepReport:
    """Report on one request's tokens of a step."""

    position: int
    """Position of the step's first token of this request."""
    num_tokens: int
    abort: int | None = None
    """First position at which a rule ends the answer; None: none has."""
    readout: ReadoutChunk | None = None
    failure: str | None = None
    """Why the request cannot be steered. No other field has a meaning then."""
