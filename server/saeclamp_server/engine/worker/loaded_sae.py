"""Worker process: an SAE or vector bank as this worker has it."""

from __future__ import annotations

from dataclasses import dataclass

from saeclamp_saes import SAE
from saeclamp_server.engine.worker.feature_row_cache import FeatureRowCache


@dataclass(frozen=True)
class LoadedSAE:
    """An SAE or vector bank; its number in the tables is its place among all of the engine."""

    name: str
    whole: SAE
    """The SAE with all features, maybe in the host's memory."""
    row_cache: FeatureRowCache | None = None
    """Row cache; None where the SAE is whole on the device, or not needed there."""

    @property
    def sae(self) -> SAE:
        """The SAE by whose features the tables go: whole, or the rows of the row cache."""
        return self.whole if self.row_cache is None else self.row_cache.sae
