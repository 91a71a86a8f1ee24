"""The steering context: SAEs, vectors and measures that requests are resolved against."""

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
    """The loaded SAEs, the uploaded vectors, and the norms and maxima by which values are measured."""

    saes: Mapping[str, SAEEntry]
    norms: Mapping[str, SiteNorms]
    """Norms measured at each SAE's site, by the SAE's name."""
    labelled: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    """Largest activations that labels know, by the SAE's name and the feature's index."""
    max_dose: float | None = None
    """Largest norm of a token's edits, as a multiple of the residual stream's median norm; None is without bound."""
    needs_measure: bool = True
    """True if an edit whose dose cannot be measured is refused where there is a bound; else it passes."""
    vectors: Mapping[str, RegisteredVector] = field(default_factory=dict)
    """Uploaded vectors by name. They come and go while requests run."""

    describe: Callable[[str, int], str | None] = lambda sae, index: None
    """Describes a feature in words, by its SAE's name and its index; None where nothing is known of it."""

    rounding: Rounding = rounded
    """Rounding of the norms by which values are measured; variants also try the other way (see `VariantRegistry`)."""

    def site_of(self, edit: EditSpec) -> Site:
        """Return the site where the edit is added, the first one if there are several."""
        return self.vectors[edit.vector].site if edit.vector is not None else self.saes[edit.sae].summary.site

    def norms_of(self, edit: EditSpec) -> SiteNorms:
        """Return the norms by which the edit is measured; those of a vector have one row, its own."""
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
        # labels come from files of other people, so their numbers are checked here
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
