"""Nothing that users, files or other servers depend on has changed."""

from __future__ import annotations

import json

import pytest
from tests.goldens.record import FOLDER, GOLDENS, path_of, text_of


@pytest.mark.parametrize("name", GOLDENS)
def test_what_is_depended_on_is_as_it_was_recorded(name: str) -> None:
    assert json.loads(text_of(name)) == json.loads(path_of(name).read_text())


def test_everything_that_is_recorded_is_compared() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(GOLDENS)
