"""
Steering that is saved under a model's name.

    names.py     `<base>:<name>@<sha>`
    version.py   a version, and its address
    tables.py    where versions and names are kept; migrations/ makes and changes these tables
    store.py     creating, finding, deleting, over SQLite or PostgreSQL
    presets.py   variants that the feature book makes
    registry.py  all of them, as requests name them: checked against what is served
"""

from saeclamp_server.variants.registry import VariantRegistry
from saeclamp_server.variants.store import StoreError, VariantStore, default_url

__all__ = ["StoreError", "VariantStore", "VariantRegistry", "default_url"]
