"""
Steering that is saved under a model's name.

    names.py     names of variants: `<base>:<name>@<sha>`
    version.py   a version, and its address
    store.py     creating, finding, deleting in the database
    presets.py   variants that the feature book makes
    registry.py  all variants, as requests name them, checked against the SAEs and vectors that are loaded
"""

from saeclamp_server.variants.registry import VariantRegistry
from saeclamp_server.variants.store import VariantStore

__all__ = ["VariantStore", "VariantRegistry"]
