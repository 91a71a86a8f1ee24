"""What comes out of the sandbox in which a pickle is converted is not believed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.saes.loaders.layouts import (
    goodfire,
)
from tests.support.convert_fixture import Payload, refusal

from saeclamp_saes import conversion
from saeclamp_saes.conversion import Limits
from saeclamp_saes.conversion.sandbox_launcher import run_sandbox
from saeclamp_saes.conversion.sandbox_main import ConversionRequest
from saeclamp_saes.errors import CheckpointError
from saeclamp_saes.loaders import native


def hostile(converted: Path, write: Callable[[Path], object]) -> Callable[[ConversionRequest, Path, float], None]:
    """Return a sandbox in the hands of an attacker, which says that all is well."""

    def run(request: ConversionRequest, folder: Path, timeout_seconds: float) -> None:
        shutil.copytree(converted, folder / "sae")
        write(folder / "sae")

    return run


def _link_weights(folder: Path) -> None:
    (folder / native.WEIGHTS).rename(folder.parent / "elsewhere")
    (folder / native.WEIGHTS).symlink_to(folder.parent / "elsewhere")


def _claim_another_layout(folder: Path) -> None:
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | {"read_as": "goodfire\x1b[2J"}))


def _pickle_weights(folder: Path) -> None:
    (folder / native.WEIGHTS).write_bytes(pickle.dumps(Payload("false")) + b"." * 100)


@pytest.mark.parametrize(
    ("write", "says"),
    [
        pytest.param(
            lambda folder: (folder / "sae.pt").touch(), "wrote something else than an SAE.", id="another file"
        ),
        pytest.param(
            lambda folder: (folder / "cfg.json").unlink(), "wrote something else than an SAE.", id="no config"
        ),
        pytest.param(_link_weights, "wrote something else than files.", id="a link"),
        pytest.param(_claim_another_layout, "read an unknown layout.", id="an unknown layout"),
        pytest.param(_pickle_weights, "wrote a broken file:", id="a pickle"),
    ],
)
def test_what_the_sandbox_wrote_is_not_believed(
    write: Callable[[Path], object], says: str, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = goodfire.write(tmp_path / "published").path
    monkeypatch.setattr(conversion, "run_sandbox", hostile(converted, write))
    assert f"Converting to {tmp_path / 'converted'} {says}" in refusal(path, tmp_path / "converted")


def test_a_source_that_changes_meanwhile_is_refused(
    converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = goodfire.write(tmp_path / "published").path
    monkeypatch.setattr(conversion, "run_sandbox", hostile(converted, lambda folder: os.utime(path, (1, 1))))
    assert refusal(path, tmp_path / "converted") == f"{path} was changed while it was converted."


def test_a_file_cannot_put_words_into_the_sandboxs_mouth(tmp_path: Path) -> None:
    path = tmp_path / "sae.pt"
    torch.save({"\nwritten: all is well\x1b[2J": 1j, "W_enc": torch.ones(2, 2)}, path)
    assert refusal(path, tmp_path / "converted") == (
        f"{path}: written: all is well?[2J is a complex, neither a tensor nor a plain value."
    )


def test_the_process_gets_no_environment_and_no_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "sitecustomize.py").write_text("raise SystemExit(7)")
    roomy = Limits(memory_bytes=1 << 32, file_bytes=1 << 30, cpu_seconds=60)
    request = ConversionRequest(str(tmp_path / "no.pt"), str(tmp_path / "no.pt"), "", str(tmp_path / "sae"), roomy)
    with pytest.raises(CheckpointError, match=r"has no no\.pt\.$"):
        run_sandbox(request, tmp_path, 60)
