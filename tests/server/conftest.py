"""SAE entries without weights, for what is decided before the engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from saeclamp_saes import SAEEntry, Site
from saeclamp_saes.formats import CheckpointSummary
from saeclamp_saes.library import FeatureNote


def entry(name: str, layer: int, d_sae: int, *notes: FeatureNote) -> SAEEntry:
    summary = CheckpointSummary(Site("resid_post", layer), 16, d_sae, "jumprelu", None, Path("weights"))
    return SAEEntry(name, Path(name), f"sha-of-{name}", summary, {note.index: note for note in notes})


@pytest.fixture
def saes() -> Mapping[str, SAEEntry]:
    bridge, food = FeatureNote(4, "bridge", 200.0), FeatureNote(5, "food", None)
    return {"big": entry("big", 8, 100, bridge, food), "small": entry("small", 3, 10)}
