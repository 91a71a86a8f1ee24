"""sae-lens, of the one version whose differences are known, over a cache of the Hub in a folder of the test."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.saes.loaders.layouts.hub import Lens

VERSION = "6.54.12"


@pytest.fixture(scope="session")
def package() -> tuple[Any, Any]:
    """Take the 20 s that the import takes once, and only for tests that run."""
    if importlib.util.find_spec("sae_lens") is None or importlib.metadata.version("sae-lens") != VERSION:
        pytest.skip(f"these differences were found in sae-lens {VERSION}, which is not installed")
    return importlib.import_module("sae_lens"), importlib.import_module("sae_lens.loading.pretrained_sae_loaders")


@pytest.fixture
def lens(package: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lens]:
    sae_lens, loaders = package
    lens = Lens(sae_lens.SAE, loaders, tmp_path / "hub")
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(lens.cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", lens.shapes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield lens
