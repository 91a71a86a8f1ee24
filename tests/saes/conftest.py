"""A user's library of SAEs, empty, an SAE to put into it, and a converted one."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.e2e.checkpoints import make_sae
from tests.saes.layouts import goodfire

from saeclamp_saes.conversion import convert


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAECLAMP_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "saes"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_sae(tmp_path / "some" / "my-sae", layer=2, d_in=16, d_sae=24)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted checkpoint; not to be changed."""
    folder = tmp_path_factory.mktemp("converted")
    return convert(goodfire.write(folder).path, folder / "converted").path
