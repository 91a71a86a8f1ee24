"""Containers give the numbers that were stored, in any piece and any type, in single precision."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from saeclamp_saes.errors import CheckpointError
from saeclamp_saes.io.npz import NpzFile
from saeclamp_saes.io.safetensors import SafetensorsFile
from saeclamp_saes.io.tensors import LoadedTensors, Tensors, is_finite

MATRIX = torch.arange(7 * 5, dtype=torch.float32).view(7, 5) - 16.5
CUBE = torch.arange(3 * 4 * 5, dtype=torch.float32).view(3, 4, 5) / 8


def held(container: str, tensors: Mapping[str, Tensor], folder: Path, shapes_only: bool = False) -> Tensors:
    """Put tensors into a container and open it."""
    if container == "safetensors":
        save_file(
            {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()},
            folder / "sae.safetensors",
        )
        return SafetensorsFile(folder / "sae.safetensors", shapes_only)
    if container == "loaded":
        return LoadedTensors(folder / "sae.pt", tensors, shapes_only)
    save = np.savez if container == "npz" else np.savez_compressed
    save(folder / "sae.npz", **{name: tensor.numpy() for name, tensor in tensors.items()})
    return NpzFile(folder / "sae.npz", shapes_only)


CONTAINERS = ("safetensors", "npz", "compressed npz", "loaded")


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("chunk_bytes", [1 << 24, 80, 4], ids=["whole", "some rows at a time", "a number at a time"])
def test_every_piece_is_what_was_stored(container: str, tmp_path: Path, chunk_bytes: int) -> None:
    file = held(container, {"W": MATRIX, "cube": CUBE, "k": torch.tensor(32), "b": MATRIX[0].clone()}, tmp_path)
    file.chunk_bytes = chunk_bytes
    assert file.shapes == {"W": (7, 5), "cube": (3, 4, 5), "k": (), "b": (5,)}
    assert torch.equal(file.tensor("W", (7, 5)), MATRIX)
    assert torch.equal(file.transposed("W", (7, 5)), MATRIX.T)
    assert file.transposed("W", (7, 5)).is_contiguous()
    assert torch.equal(file.tensor("cube", (3, 4, 5)), CUBE)
    for index in range(3):
        assert torch.equal(file.part("cube", index), CUBE[index])
    for start in range(4):
        assert torch.equal(file.tail("cube", start), CUBE[:, start:].reshape(3, -1))
    assert torch.equal(file.tensor("b", (5,)), MATRIX[0])
    assert file.part("b", 3).item() == MATRIX[0, 3]
    assert file.scalar("k") == 32


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_storage_type_becomes_single_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    values = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    for container in CONTAINERS:
        if dtype is torch.bfloat16 and "npz" in container:  # numpy has none
            continue
        read = held(container, {"W": values}, tmp_path).tensor("W", (40, 3))
        assert read.dtype is torch.float32
        assert torch.equal(read, values.float())


@pytest.mark.parametrize("value", [torch.tensor(7), torch.tensor([7], dtype=torch.int32), torch.tensor([[7.0]])])
@pytest.mark.parametrize("container", CONTAINERS)
def test_one_number_is_read_without_the_others(container: str, value: Tensor, tmp_path: Path) -> None:
    assert held(container, {"k": value}, tmp_path, shapes_only=True).scalar("k") == 7


@pytest.mark.parametrize("container", CONTAINERS)
def test_shapes_alone_need_no_memory(container: str, tmp_path: Path) -> None:
    file = held(container, {"W": MATRIX, "cube": CUBE}, tmp_path, shapes_only=True)
    pieces = (file.tensor("W", (7, 5)), file.transposed("W", (7, 5)), file.part("cube", 1), file.tail("cube", 1))
    assert [tuple(piece.shape) for piece in pieces] == [(7, 5), (5, 7), (4, 5), (3, 15)]
    assert all(piece.is_meta for piece in pieces)


def test_what_torch_saved_transposed_is_read_as_it_looks(tmp_path: Path) -> None:
    file = held("loaded", {"W": MATRIX.T, "every other": CUBE[:, ::2]}, tmp_path)
    assert torch.equal(file.tensor("W", (5, 7)), MATRIX.T)
    assert torch.equal(file.transposed("W", (5, 7)), MATRIX)
    assert torch.equal(file.part("every other", 1), CUBE[1, ::2])


@pytest.mark.parametrize("container", CONTAINERS)
def test_what_is_not_there_is_said(container: str, tmp_path: Path) -> None:
    file = held(container, {"W": MATRIX, "V": MATRIX}, tmp_path)
    for act, says in (
        (lambda: file.tensor("X", (7, 5)), "lacks X."),
        (lambda: file.tensor("W", (5, 7)), "W has shape (7, 5), expected (5, 7) (stored the other way round)."),
        (lambda: file.tensor("W", (7, 6)), "W has shape (7, 5), expected (7, 6)."),
        (lambda: file.part("W", 7), "W has shape (7, 5), so no part 7."),
        (lambda: file.scalar("W"), "W has shape (7, 5), expected one number."),
        (lambda: file.expect({"W": (7, 5)}), "has V, whose meaning is not known."),
        (lambda: file.expect({"W": (7, 5), "V": (7, 5), "b": (5,)}), "lacks b."),
    ):
        with pytest.raises(CheckpointError) as raised:
            act()
        assert str(raised.value).endswith(says)
    file.expect({"W": (7, 5)}, {"V": (7, 5), "b": (5,)})


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_one_bad_number_anywhere_is_found(bad: float, dtype: torch.dtype) -> None:
    for row in range(33):
        for column in range(3):
            tensor = torch.ones(33, 3, dtype=dtype)
            assert is_finite(tensor)
            assert is_finite(tensor.T)
            tensor[row, column] = bad
            assert not is_finite(tensor)
            assert not is_finite(tensor.T)
            assert not is_finite(tensor[row, column])
    assert is_finite(torch.empty(3, device="meta"))
