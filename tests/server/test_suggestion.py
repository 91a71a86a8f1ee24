"""From a wish to what is looked for."""

from __future__ import annotations

import pytest

from saeclamp_server.finding.suggestion import subject_of


@pytest.mark.parametrize(
    ("wish", "subject"),
    [
        ("talk about gardening and flowers", "about gardening and flowers"),
        ("Answer like a pirate!", "a pirate!"),
        ("be more polite", "polite"),
        ("the sea", "the sea"),
        ("talk more", "talk more"),
    ],
)
def test_words_that_only_say_that_something_is_wished_are_left_out(wish: str, subject: str) -> None:
    assert subject_of(wish) == subject
