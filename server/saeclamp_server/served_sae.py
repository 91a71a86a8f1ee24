"""A served SAE, as the API process knows it; the worker holds its weights (`engine.worker.ops.LoadedSAE`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from saeclamp_saes import SAEEntry
from saeclamp_server.site_norms import SiteNorms

if TYPE_CHECKING:  # reads Parquet, which those who only resolve requests need not load
    from saeclamp_saes.labelling.label_file import LabelFile


@dataclass(frozen=True)
class ServedSAE:
    """A served SAE with its norms, feature book, labels and calibration curves."""

    entry: SAEEntry
    norms: SiteNorms
    """Norms measured at its site."""
    fit: Mapping[str, Any] | None = None
    """Fit to the model, as measured when the server started: the fields of `evaluation.quick_check.QuickFit`."""
    labels: LabelFile | None = None
    """Labels of the very weights that are served; None: there are none."""
    curves: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    """A feature's index to what calibration wrote of it."""

    def max_act(self, index: int) -> float | None:
        """Look up a feature's stored maximum: the feature book's, or else the labels'."""
        note = self.entry.features.get(index)
        if note is not None and note.max_act is not None:
            return note.max_act
        # labels come from files of other people, so their numbers are checked here
        largest = self.labels.max_acts[index] if self.labels else None
        return largest if largest is not None and math.isfinite(largest) and largest > 0 else None

    def without_labels(self) -> ServedSAE:
        """Return it as if no labels lay beside it."""
        return replace(self, labels=None)
