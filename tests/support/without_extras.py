"""Runs the command line as after `pip install .`: whatever only an extra installs cannot be found."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

INSTALLED = {
    *(
        "annotated_types",
        "anyio",
        "certifi",
        "h11",
        "httpcore",
        "httpx",
        "idna",
        "platformdirs",
        "pydantic",
        "pydantic_core",
        "sniffio",
    ),
    *("typing_extensions", "typing_inspection", "saeclamp", "saeclamp_saes", "saeclamp_server"),
}
"""What the client and its three dependencies bring."""


class OnlyInstalled:
    """A finder that finds what another one finds, unless it is of an extra."""

    def __init__(self, finder: Any) -> None:
        self._finder = finder

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        found: ModuleSpec | None = self._finder.find_spec(name, path, target)
        is_extra = found is not None and "site-packages" in str(found.origin or found.submodule_search_locations)
        return None if is_extra and name.partition(".")[0] not in INSTALLED else found

    def find_distributions(self, *args: Any) -> Iterable[Any]:
        find = getattr(self._finder, "find_distributions", None)
        return find(*args) if find else ()


if __name__ == "__main__":
    sys.meta_path[:] = [OnlyInstalled(finder) for finder in sys.meta_path]
    from saeclamp_server.__main__ import main

    main()
