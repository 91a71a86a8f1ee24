"""Files that are mapped have all their room before anything long begins, so that a full disk is a sentence."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.tiny_training import corpus, reader, training, wanted

from saeclamp_saes.errors import TrainingError
from saeclamp_saes.io.vector_files import VectorFile, allocate
from saeclamp_saes.training.activations_store import ActivationsStore, write_store

SECTOR = 512
"""Bytes of `st_blocks`, whatever the disk's own blocks are."""


def test_a_file_of_vectors_is_not_sparse(tmp_path: Path) -> None:
    rows = VectorFile(tmp_path / "rows", 10_000, 100, "bfloat16", begun=False)
    found = (tmp_path / "rows").stat()
    assert found.st_size == 2_000_000 <= SECTOR * found.st_blocks
    assert not rows.tensor.any()


@pytest.mark.parametrize("platform", ["linux", "darwin"])
@pytest.mark.parametrize("size", [1, (1 << 20) - 1, (3 << 20) + 5])
def test_room_is_taken_in_whole(tmp_path: Path, platform: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saeclamp_saes.io.vector_files.sys.platform", platform)
    (tmp_path / "file").write_bytes(b"before")
    allocate(tmp_path / "file", size)
    assert (tmp_path / "file").read_bytes() == bytes(size)
    assert SECTOR * (tmp_path / "file").stat().st_blocks >= size


@pytest.mark.parametrize("work", [training, write_store])
@pytest.mark.parametrize("num", [1, 2], ids=["held-out", "training"])
def test_a_disk_without_room_is_known_at_once_and_leaves_the_folder_free(
    tmp_path: Path, work: Callable[..., Any], num: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = os.posix_fallocate, [num]

    def full(*args: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(28, "No space left on device")
        real(*args)

    data, out = corpus(tmp_path / "data"), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("saeclamp_saes.io.vector_files.os.posix_fallocate", full)
        with pytest.raises(
            TrainingError, match=r"vectors of 16 numbers take .* No space left on device\. Keep fewer\."
        ):
            work(out, wanted(data), reader(), lambda *_: pytest.fail("something long began"))
    assert list(out.iterdir()) == []
    work(out, wanted(data, 1500), reader())


def test_a_finished_harvest_takes_no_more_room_than_its_vectors(tmp_path: Path) -> None:
    """Of many more tokens than the documents have."""
    site = reader().sites[0]
    store = write_store(tmp_path / "store", wanted(corpus(tmp_path / "data"), 10**6), reader())
    assert 1000 < store.num_rows < 10_000
    for name, num_rows in (("training", store.num_rows), ("held-out", store.num_held_out)):
        assert (store.folder / "resid_post.1" / f"{name}.rows").stat().st_size == num_rows * 16 * 2
    again = write_store(tmp_path / "store", wanted(tmp_path / "data", 10**6), reader())
    assert again.rows(site).tensor.equal(ActivationsStore.open(tmp_path / "store").rows(site).tensor)
    assert again.rows(site).tensor.any(dim=1).all()
