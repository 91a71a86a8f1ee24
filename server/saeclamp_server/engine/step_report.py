"""From worker process to EngineCore, each step: which requests failed, what their tokens showed, where rules end them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WIPED = "saeclamp_wiped"
"""Attribute of vLLM's `SchedulerOutput`: ids of the blocks that are to be zero before this step."""

ATTRIBUTE = "saeclamp_told"
"""Of vLLM's `ModelRunnerOutput`: it goes where the sampled tokens go, with them."""


@dataclass(frozen=True)
class ReadoutChunk:
    """What was read at some positions of a request, ascending."""

    positions: list[int]
    acts: list[list[float | None]]
    """Of each position, the readout's named features; None where a special token was not to be looked at."""
    top: dict[str, list[list[tuple[int, float]] | None]]
    """By SAE, of each position: (index, activation) of the strongest features that are active; None as in `acts`."""
    edits: list[list[tuple[int, float, float]]]
    """Of each position: (number of the edit, activation before, dose) of the edits that were made; empty unless itemised."""

    def between(self, start: int, end: int | None) -> ReadoutChunk:
        """Those at positions from `start` (included) to `end` (excluded; None: all)."""
        kept = [n for n, at in enumerate(self.positions) if at >= start and (end is None or at < end)]
        return ReadoutChunk(
            [self.positions[n] for n in kept],
            [self.acts[n] for n in kept],
            {sae: [rows[n] for n in kept] for sae, rows in self.top.items()},
            [self.edits[n] for n in kept],
        )

    @classmethod
    def concat(cls, parts: Sequence[ReadoutChunk]) -> ReadoutChunk:
        """One after the other."""
        saes = dict.fromkeys(sae for part in parts for sae in part.top)
        return cls(
            [at for part in parts for at in part.positions],
            [acts for part in parts for acts in part.acts],
            {sae: [row for part in parts for row in part.top[sae]] for sae in saes},
            [edits for part in parts for edits in part.edits],
        )


@dataclass(frozen=True)
class RequestStepReport:
    """What one request's tokens of a step showed."""

    position: int
    """Of the first token."""
    num_tokens: int
    abort: int | None = None
    """First position at which a rule ends the answer; None: none has."""
    readout: ReadoutChunk | None = None
    failure: str | None = None
    """Why the request cannot be steered. Nothing else is told then."""
