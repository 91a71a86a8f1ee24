"""Npz files made to harm: every one is refused with a sentence, before it costs memory or runs anything."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.refusals import little_memory, sentence

from saeclamp_saes.errors import CheckpointError
from saeclamp_saes.io.npz import NpzFile

__all__ = ["little_memory"]

pytestmark = pytest.mark.usefixtures("little_memory")


def npz(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def npy(array: Any, **how: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **how)
    return stream.getvalue()


def npy_header(text: str, version: int = 1, length: int | None = None) -> bytes:
    size = len(text) if length is None else length
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", size) + text.encode()


def described(shape: str, descr: str = "'<f4'", fortran: bool = False) -> bytes:
    return npy_header(f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n")


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("it-was-run",)


@pytest.mark.parametrize(
    ("member", "says"),
    [
        pytest.param(
            npy(np.array([Payload()]), allow_pickle=True), "W holds Python objects, which are a pickle.", id="o"
        ),
        pytest.param(described("(2,)", "[('a', 'O')]") + bytes(16), "W holds Python objects", id="objects in a record"),
        pytest.param(pickle.dumps(Payload()), "W is not a readable array", id="pickle"),
        pytest.param(described("(1099511627776,)"), "W has shape (1099511627776,), which no SAE has.", id="4 TiB"),
        pytest.param(described("(4194304, 4194304)"), "which does not fit its size.", id="64 TiB in legal sizes"),
        pytest.param(described("(-2, -2)") + bytes(16), "W has shape (-2, -2), which no SAE has.", id="negative"),
        pytest.param(described("(0,)"), "W has shape (0,), which no SAE has.", id="empty"),
        pytest.param(described("(4,)") + bytes(12), "W declares shape (4,), which does not fit its size.", id="cut"),
        pytest.param(described("(4,)", "'<V2'") + bytes(8), "W holds |V2, not numbers that can be read.", id="raw"),
        pytest.param(described("(4,)", "'>f4'") + bytes(16), "W holds >f4, not numbers that can be read.", id="order"),
        pytest.param(described("(4,)", "'<c8'") + bytes(32), "W holds complex64, not numbers", id="complex"),
        pytest.param(described("(2, 2)", fortran=True) + bytes(16), "W is stored in Fortran order", id="Fortran"),
        pytest.param(npy_header("{'descr': " + "(" * 5000), "W is not a readable array", id="deep header"),
        pytest.param(npy_header("{", version=2, length=1 << 31), "W is not a readable array", id="2 GiB of header"),
        pytest.param(npy_header("__import__('os').mkdir('it-was-run')"), "W is not a readable array", id="code"),
        pytest.param(npy_header("{}", version=3), "W is not a readable array: npy version (3, 0)", id="version"),
        pytest.param(b"PK\x03\x04" + bytes(100), "W is not a readable array", id="a zip in the zip"),
        pytest.param(b"", "W is not a readable array", id="nothing"),
    ],
)
def test_an_array_that_lies_is_refused(
    member: bytes, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = npz(tmp_path / "params.npz", {"W.npy": member})
    assert says in sentence(lambda: NpzFile(path))
    assert not (tmp_path / "it-was-run").exists()


def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    path = npz(tmp_path / "params.npz", {"W.npy": npy(np.zeros((1 << 12, 1 << 12), np.float32))}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 17
    assert "declares far more than it holds; it looks like a zip bomb." in sentence(lambda: NpzFile(path))


@pytest.mark.parametrize("compression", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_compression_that_takes_memory_is_refused(compression: int, tmp_path: Path) -> None:
    path = npz(tmp_path / "params.npz", {"W.npy": npy(np.ones(4, np.float32))}, compression)
    assert "W is compressed in a way that numpy never writes." in sentence(lambda: NpzFile(path))


def test_a_directory_of_a_million_members_is_not_read(tmp_path: Path) -> None:
    path = npz(tmp_path / "params.npz", {f"{number:0200d}": b"" for number in range(6000)})
    assert "its directory is too large" in sentence(lambda: NpzFile(path))


def test_many_members_are_refused(tmp_path: Path) -> None:
    path = npz(tmp_path / "params.npz", {f"{number}.npy": npy(np.ones(1)) for number in range(1025)})
    assert "holds 1025 tensors; an SAE has a few." in sentence(lambda: NpzFile(path))


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    path = npz(tmp_path / "params.npz", {"W.npy": npy(np.ones(4))})
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.find(signature) + offset] |= 1
    path.write_bytes(content)
    assert "is not a readable npz file" in sentence(lambda: NpzFile(path))
    assert "encrypted" in sentence(lambda: NpzFile(path))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "params.npz", "w") as archive:
        archive.writestr("W.npy", npy(np.ones(4, np.float32)))
        archive.writestr("W.npy", npy(np.zeros(4, np.float32)))
    assert "names a tensor twice." in sentence(lambda: NpzFile(tmp_path / "params.npz"))
    both = npz(tmp_path / "both.npz", {"W.npy": npy(np.ones(4)), "W": npy(np.ones(4))})
    assert "names a tensor twice." in sentence(lambda: NpzFile(both))


def test_a_members_name_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    path = npz(
        tmp_path / "inside" / "params.npz", {"../escaped.npy": npy(np.ones(4, np.float32)), "W": npy(np.ones(2))}
    )
    tensors = NpzFile(path)
    assert tensors.tensor("../escaped", (4,)).tolist() == [1, 1, 1, 1]
    assert tensors.tensor("W", (2,)).tolist() == [1, 1]
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["inside", "params.npz"]


@pytest.mark.parametrize("position", range(0, 400, 13))
def test_a_flipped_byte_never_gives_other_numbers(position: int, tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=24).astype(np.float32)
    path = npz(tmp_path / "params.npz", {"W.npy": npy(array)}, zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 0x5A
    path.write_bytes(content)
    with suppress(CheckpointError):
        assert NpzFile(path).tensor("W", (24,)).tolist() == array.tolist()  # it was a date, say
