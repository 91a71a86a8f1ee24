"""What this server steers with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from saeclamp_saes import SAEEntry, Site
from saeclamp_server.site_norms import Rounding, SiteNorms, rounded
from saeclamp_server.steering.program import EditSpec
from saeclamp_server.vector_names import VECTOR
from saeclamp_server.vectors import RegisteredVector


@dataclass(frozen=True)
class SteeringContext:
    """The loaded SAEs, the uploaded vectors, and what values are measured by."""

    saes: Mapping[str, SAEEntry]
    norms: Mapping[str, SiteNorms]
    """By the SAE's name."""
    labelled: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    """Largest activations that labels know, by the SAE's name and the feature's index."""
    max_dose: float | None = None
    """Longest edit of a token, as a multiple of the stream's median length; None is without bound."""
    needs_measure: bool = True
    """Whether what cannot be measured is beyond that bound; else it is within."""
    vectors: Mapping[str, RegisteredVector] = field(default_factory=dict)
    """By name. They come and go while requests run."""

    describe: Callable[[str, int], str | None] = lambda sae, index: None
    """Says in words what a feature is, by its SAE's name and its index; None where nothing is known of it."""

    rounding: Rounding = rounded
    """Of the lengths by which values are measured."""

    def site_of(self, edit: EditSpec) -> Site:
        """Where the edit is added, first if at several sites."""
        return self.vectors[edit.vector].site if edit.vector is not None else self.saes[edit.sae].summary.site

    def norms_of(self, edit: EditSpec) -> SiteNorms:
        """By what the edit is measured; a vector is the one row of its own."""
        return self.vectors[edit.vector].norms if edit.vector is not None else self.norms[edit.sae]

    def sha256_of(self, name: str) -> str:
        """Look up the hash of an SAE, or of a vector, as edits name them."""
        if name.startswith(VECTOR):
            return self.vectors[name.removeprefix(VECTOR)].sha256
        return self.saes[name].sha256

    def max_act(self, sae: str, index: int) -> float | None:
        """Look up a feature's stored maximum: the feature book's, or else the labels'. Vectors have none."""
        if sae not in self.saes:
            return None
        note = self.saes[sae].features.get(index)
        if note is not None and note.max_act is not None:
            return note.max_act
        largest = self.labelled[sae][index] if sae in self.labelled else None
        return largest if largest is not None and math.isfinite(largest) and largest > 0 else None

    def green_zone(self, sae: str, index: int) -> tuple[float, float] | None:
        """Look up the lowest and highest clamp that was found to work, in multiples of `max_act`. Vectors have none."""
        note = self.saes[sae].features.get(index) if sae in self.saes else None
        return note.clamp if note else None

    def name_of(self, sae: str, index: int) -> str | None:
        """Look up a feature's name in the feature book."""
        note = self.saes[sae].features.get(index)
        return note.name if note else None
