"""A cache of the Hub in a folder, and sae-lens over it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Lens(NamedTuple):
    """The package, over a cache of the Hub in a folder of the test."""

    SAE: Any
    loaders: Any
    cache: Path
    """Where the Hub's client keeps what it has downloaded."""

    def load(self, loader: str, repository: str, name: str, **overrides: Any) -> Any:
        """Load one SAE by the loader that a release's entry names."""
        load = self.loaders.NAMED_PRETRAINED_SAE_LOADERS[loader]

        def with_overrides(cfg_overrides: dict[str, Any], **rest: Any) -> Any:
            return load(cfg_overrides={**cfg_overrides, **overrides}, **rest)

        return self.SAE.from_pretrained(repository, name, converter=with_overrides)

    def publish(self, repository: str, folder: Path) -> None:
        """Lay a folder's files out as the Hub's client does."""
        root = self.cache / f"models--{repository.replace('/', '--')}"
        shutil.copytree(folder, root / "snapshots" / COMMIT)
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text(COMMIT)

    def shapes(self, repository: str, name: str) -> dict[str, list[int]]:
        """Shapes in a file's header, which sae-lens asks the Hub for even when the file is in the cache."""
        path = self.cache / f"models--{repository.replace('/', '--')}" / "snapshots" / COMMIT / name
        with safe_open(path, framework="pt") as file:
            return {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 (no dict)
