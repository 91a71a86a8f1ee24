"""Variants in SQLite, and in PostgreSQL."""

from __future__ import annotations

import pytest
from tests.support.variants import served

from saeclamp_server.database import Database
from saeclamp_server.variants import VariantRegistry, VariantStore


@pytest.fixture
def variants(database: Database) -> VariantRegistry:
    return VariantRegistry(VariantStore(database), served(), ["tiny", "tiny-too"])
