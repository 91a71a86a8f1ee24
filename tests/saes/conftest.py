"""A user's library of SAEs, empty, an SAE to put into it, and a converted one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.saes.loaders.layouts import goodfire
from tests.support.checkpoints import make_sae

from saeclamp_saes.conversion import convert


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors here are so small that several threads only wait for one another, longer where other processes run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
