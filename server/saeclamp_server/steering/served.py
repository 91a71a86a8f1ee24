"""What this server steers with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from saeclamp_saes import SAEEntry
from saeclamp_server.doses import Lengths


@dataclass(frozen=True)
class Served:
    """The loaded SAEs, and what values are measured by."""

    saes: Mapping[str, SAEEntry]
    lengths: Mapping[str, Lengths]
    """By the SAE's name."""
    labelled: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    """Largest activations that labels know, by the SAE's name and the feature's index."""
    max_dose: float | None = None
    """Longest edit of a token, as a multiple of the stream's median length; None is without bound."""

    def max_act(self, sae: str, index: int) -> float | None:
        """Look up a feature's stored maximum: the feature book's, or else the labels'."""
        note = self.saes[sae].features.get(index)
        if note is not None and note.max_act is not None:
            return note.max_act
        return self.labelled[sae][index] if sae in self.labelled else None

    def name_of(self, sae: str, index: int) -> str | None:
        """Look up a feature's name in the feature book."""
        note = self.saes[sae].features.get(index)
        return note.name if note else None
