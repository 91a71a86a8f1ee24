"""The steering context: SAEs, vectors and measures that requests are resolved against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from saeclamp_saes import Site
from saeclamp_server.served_sae import ServedSAE
from saeclamp_server.site_norms import Rounding, SiteNorms, rounded
from saeclamp_server.steering.program import EditSpec
from saeclamp_server.vector_names import vector_of
from saeclamp_server.vectors import RegisteredVector


@dataclass(frozen=True)
class SteeringContext:
    """The served SAEs and the uploaded vectors, and the bounds and the rounding by which values are measured."""

    saes: Mapping[str, ServedSAE]
    """Served SAEs by name."""
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
        return self.vectors[edit.vector].site if edit.vector is not None else self.saes[edit.sae].entry.summary.site

    def read_site(self, name: str) -> Site:
        """Return the site where an SAE's activations, or a vector's as edits name it, are known: the last where it reads."""
        if (vector := vector_of(name)) is not None:
            return self.vectors[vector].site
        return self.saes[name].entry.summary.reads[-1]

    def shown_act(self, name: str, act: float) -> float:
        """Convert an activation to what users are shown: itself, or of a vector, as edits name it, the score."""
        vector = vector_of(name)
        return act if vector is None else self.vectors[vector].score(act)

    def norms_of(self, edit: EditSpec) -> SiteNorms:
        """Return the norms by which the edit is measured; those of a vector have one row, its own."""
        return self.vectors[edit.vector].norms if edit.vector is not None else self.saes[edit.sae].norms

    def sha256_of(self, name: str) -> str:
        """Look up the hash of an SAE, or of a vector, as edits name them."""
        if (vector := vector_of(name)) is not None:
            return self.vectors[vector].sha256
        return self.saes[name].entry.sha256

    def max_act(self, sae: str, index: int) -> float | None:
        """Look up a feature's stored maximum: the feature book's, or else the labels'. Vectors have none."""
        return self.saes[sae].max_act(index) if sae in self.saes else None

    def green_zone(self, sae: str, index: int) -> tuple[float, float] | None:
        """Look up the lowest and highest clamp that was found to work, in multiples of `max_act`. Vectors have none."""
        note = self.saes[sae].entry.features.get(index) if sae in self.saes else None
        return note.clamp if note else None

    def name_of(self, sae: str, index: int) -> str | None:
        """Look up a feature's name in the feature book."""
        note = self.saes[sae].entry.features.get(index)
        return note.name if note else None
