"""A model's hash depends on its weights, in whichever files they are."""

from __future__ import annotations

import hashlib
from pathlib import Path

from saeclamp_saes.lm.provenance import model_hashes


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_weights_in_pickles_count_where_there_are_no_others(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"one")
    assert model_hashes(str(tmp_path)) == {"pytorch_model.bin": sha256(b"one")}
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert model_hashes(str(tmp_path)) == {"model.safetensors": sha256(b"two")}
