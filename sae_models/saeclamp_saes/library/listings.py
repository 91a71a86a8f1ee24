"""
Listings of the files around an SAE on the hub, kept on disk for good, because a commit never changes.

    $SAECLAMP_HOME (see `user_library`)
    └── listings/<sha256 of the place>.json
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from saeclamp_saes.io.atomic import replace_text
from saeclamp_saes.library.user_library import library_folder


def keep(place: str, sizes: Mapping[str, int]) -> None:
    """
    Keep the files' sizes, if it can be done: without them the hub is asked again.

    place: on the hub, with a commit
    sizes: in bytes, by path in the repository
    """
    path = _path(place)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps({"place": place, "sizes": dict(sizes)}, indent=1))


def kept(place: str) -> dict[str, int] | None:
    """Return the files' sizes, None if they are not kept or cannot be read."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        listing = json.loads(_path(place).read_text(encoding="utf-8"))
        if listing["place"] == place:
            return {str(name): int(size) for name, size in listing["sizes"].items()}
    return None


def _path(place: str) -> Path:
    return library_folder().parent / "listings" / f"{hashlib.sha256(place.encode()).hexdigest()}.json"
