"""Sparse autoencoders for serving: read published checkpoints exactly, and the maths of clamping. No serving here."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saeclamp_saes.errors import SAEError
    from saeclamp_saes.library.resolve import SAEAddress, SAEEntry, check_numbers, find_sae, open_entry
    from saeclamp_saes.loaders import read_sae
    from saeclamp_saes.options import Options
    from saeclamp_saes.sae import SAE
    from saeclamp_saes.sites import Site

__all__ = [
    "SAE",
    "Options",
    "SAEAddress",
    "SAEEntry",
    "SAEError",
    "Site",
    "check_numbers",
    "find_sae",
    "open_entry",
    "read_sae",
]

_HOMES = {
    "SAE": "sae",
    "Options": "options",
    "SAEAddress": "library.resolve",
    "SAEEntry": "library.resolve",
    "SAEError": "errors",
    "Site": "sites",
    "check_numbers": "library.resolve",
    "find_sae": "library.resolve",
    "open_entry": "library.resolve",
    "read_sae": "loaders",
}
"""Modules are imported when a name is first used: the command line builds its parser without torch."""

# for `saeclamp.saes` and `saeclamp.server`: without a handler, Python would print their warnings
logging.getLogger("saeclamp").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
