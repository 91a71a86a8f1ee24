"""A file takes another's place as a whole, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from saeclamp_saes.io.atomic import replace_text, replacing


def test_what_fails_in_the_middle_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "book.yaml"
    replace_text(path, "old")

    def fail() -> None:
        with replacing(path) as unfinished:
            unfinished.write_text("half of the ne")
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        fail()
    assert [file.name for file in tmp_path.iterdir()] == ["book.yaml"]
    assert path.read_text() == "old"


def test_the_content_is_on_the_disk_before_it_has_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, done = tmp_path / "book.yaml", []
    sync, replace = os.fsync, os.replace

    def note_sync(handle: int) -> None:
        sync(handle)
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")

    def note_replace(old: Path, new: Path) -> None:
        replace(old, new)
        done.append("name")

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    replace_text(path, "new")
    assert done == ["file", "name", "folder"]
    assert path.read_text() == "new"
