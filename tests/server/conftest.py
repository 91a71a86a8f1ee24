"""SAE entries without weights, for what is decided before the engine; and databases of both kinds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.databases import emptied, postgresql
from tests.support.sae_entries import entry, served_saes

from saeclamp_saes.library.feature_book import FeatureNote
from saeclamp_server.database import Database
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


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with postgresql(tmp_path_factory.mktemp("postgres")) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/deep/er/variants.sqlite3"
    return emptied(request.getfixturevalue("postgres"))


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    opened = Database(url)
    yield opened
    opened.close()
