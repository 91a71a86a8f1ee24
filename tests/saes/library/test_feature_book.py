"""The feature book: what is read from `features.yaml`, and what is left alone when an entry is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from saeclamp_saes.errors import CheckpointError
from saeclamp_saes.library.feature_book import FeatureNote, read_feature_book, update_feature_book

BOOK = """\
notes: Made by hand.
features:
- index: 3
  name: sea
  description: Ships and the sea.
  max_act: 2.5
  clamp: [0.5, 0.9]
  best: 0.7
  evidence: {hit: 0.8, prompts: 12, date: 2026-11-23, judged_by: words}
  colour: blue
- {index: 5, name: food}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "features.yaml").write_text(BOOK)
    return tmp_path


def test_all_fields_are_read(folder: Path) -> None:
    evidence = {"hit": 0.8, "prompts": 12, "date": "2026-11-23", "judged_by": "words"}
    assert read_feature_book(folder, 8) == {
        3: FeatureNote(3, "sea", 2.5, (0.5, 0.9), 0.7, "Ships and the sea.", evidence),
        5: FeatureNote(5, "food", None),
    }


def test_a_folder_without_a_book_has_no_notes(tmp_path: Path) -> None:
    assert read_feature_book(tmp_path, 8) == {}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("best: much", "best of 'x' must be a number"),
        ("best: true", "best of 'x' must be a number"),
        ("description: [a, b]", "description of 'x' must be text"),
        ("evidence: 0.9", "evidence of 'x' must be names with numbers or texts"),
        ("evidence: {hit: [1, 2]}", "evidence of 'x' must be names with numbers or texts"),
        ("clamp: [0.5, high]", "clamp must be the lowest and the highest value"),
        ("max_act: yes", "max_act of 'x' must be a positive number"),
    ],
)
def test_a_field_of_the_wrong_kind_is_refused(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "features.yaml").write_text(f"features:\n- index: 1\n  name: x\n  {line}\n")
    with pytest.raises(CheckpointError, match=says):
        read_feature_book(tmp_path, 8)


@pytest.mark.parametrize(("index", "says"), [("yes", "index True is outside"), ("'1'", "index '1' is outside")])
def test_an_index_is_a_number(tmp_path: Path, index: str, says: str) -> None:
    (tmp_path / "features.yaml").write_text(f"features: [{{index: {index}, name: x}}]\n")
    with pytest.raises(CheckpointError, match=says):
        read_feature_book(tmp_path, 8)


def test_notes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "features.yaml").write_text("notes: [1]\nfeatures: []\n")
    with pytest.raises(CheckpointError, match="notes must be text"):
        read_feature_book(tmp_path, 8)


def test_an_entry_is_replaced_and_everything_else_stays(folder: Path) -> None:
    before = yaml.safe_load(BOOK)
    update_feature_book(folder, FeatureNote(3, "sea", 2.5, None, None, evidence={"hit": 0.1}), 8)
    after = yaml.safe_load((folder / "features.yaml").read_text())
    assert after["features"][0] == {
        "index": 3,
        "name": "sea",
        "description": "Ships and the sea.",
        "max_act": 2.5,
        "clamp": None,
        "best": None,
        "evidence": {"hit": 0.1},
        "colour": "blue",
    }
    assert after["features"][1:] == before["features"][1:]
    assert after["notes"] == "Made by hand."
    assert read_feature_book(folder, 8)[3].clamp is None
    assert [file.name for file in folder.iterdir()] == ["features.yaml"]


def test_a_new_entry_comes_last_also_in_a_new_book(tmp_path: Path) -> None:
    note = FeatureNote(2, "größe", 4.0, (0.5, 1.0), 0.75, "Größe.", {"date": "2026-11-23", "hit": 1})
    update_feature_book(tmp_path, FeatureNote(7, "first", 1.0), 8)
    update_feature_book(tmp_path, note, 8)
    assert list(read_feature_book(tmp_path, 8).values()) == [FeatureNote(7, "first", 1.0), note]


def test_a_book_elsewhere_is_taken_up_and_left_as_it_is(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    update_feature_book(out, FeatureNote(5, "food", 9.0), 8, source=folder)
    update_feature_book(out, FeatureNote(6, "law", 3.0), 8, source=folder)
    assert [note.name for note in read_feature_book(out, 8).values()] == ["sea", "food", "law"]
    assert (folder / "features.yaml").read_text() == BOOK


@pytest.mark.parametrize(
    ("note", "says"),
    [
        (FeatureNote(6, "sea", 1.0), "must be unique"),
        (FeatureNote(8, "far", 1.0), "outside 0..7"),
        (FeatureNote(6, "a b", 1.0), "cannot be a feature's name"),
    ],
)
def test_an_entry_that_could_not_be_read_is_not_written(folder: Path, note: FeatureNote, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        update_feature_book(folder, note, 8)
    assert (folder / "features.yaml").read_text() == BOOK
