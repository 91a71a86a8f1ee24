"""SAE entries without weights, for what is decided before the engine."""

from __future__ import annotations

import pytest
from tests.support.sae_entries import entry, served_saes

from saeclamp_saes.library.feature_book import FeatureNote
from saeclamp_server.site_norms import SiteNorms
from saeclamp_server.steering import SteeringContext


@pytest.fixture
def served() -> SteeringContext:
    bridge, food = FeatureNote(4, "bridge", 200.0), FeatureNote(5, "food", None)
    rows = [2.0] * 99 + [0.0]
    return SteeringContext(
        served_saes(
            (entry("big", 8, 100, bridge, food), SiteNorms(50.0, rows)),
            (entry("small", 3, 10), SiteNorms(None, rows[:10])),
        )
    )
