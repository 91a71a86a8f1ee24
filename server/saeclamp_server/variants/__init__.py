"""
Steering that is saved under a model's name.

    names.py     names of variants: `<base>:<name>@<sha>`
    version.py   a version, and its address
    tables.py    tables of versions, names and aliases; migrations/ makes and changes them
    store.py     creating, finding, deleting, over SQLite or PostgreSQL
    presets.py   variants that the feature book makes
    registry.py  all variants, as requests name them, checked against the SAEs and vectors that are loaded
"""

from saeclamp_server.variants.registry import VariantRegistry
from saeclamp_server.variants.store import StoreError, VariantStore, default_url

__all__ = ["StoreError", "VariantStore", "VariantRegistry", "default_url"]
