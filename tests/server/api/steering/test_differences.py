"""What two answers do not share is as little as it can be, and found by as much work whatever the tokens are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from saeclamp_server.api.steering.differences import _common, differences

TOKENS = st.lists(st.integers(0, 3), max_size=12)


def longest(one: list[int], other: list[int]) -> int:
    """The textbook's table of lengths of longest common subsequences."""
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, token in enumerate(one):
        for j, second in enumerate(other):
            table[i + 1][j + 1] = table[i][j] + 1 if token == second else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@given(TOKENS, TOKENS)
def test_as_much_is_shared_as_can_be(one: list[int], other: list[int]) -> None:
    pairs = _common(one, other)
    assert len(pairs) == longest(one, other)
    assert all(one[i] == other[j] for i, j in pairs)


@given(TOKENS, TOKENS)
def test_one_answer_becomes_the_other_by_its_differences(one: list[int], other: list[int]) -> None:
    made: list[int] = []
    end = 0
    for piece in differences(one, other):
        made += [*one[end : piece.default[0]], *other[piece.own[0] : piece.own[1]]]
        end = piece.default[1]
    assert [*made, *one[end:]] == other


def test_pieces_are_named_by_what_happens_to_the_default_answer() -> None:
    found = differences([1, 2, 3, 4, 5], [1, 9, 3, 5, 6])
    assert [(piece.op, piece.default, piece.own) for piece in found] == [
        ("replace", (1, 2), (1, 2)),
        ("delete", (3, 4), (3, 3)),
        ("insert", (5, 5), (4, 5)),
    ]
    assert differences([1, 2], [1, 2]) == ()


def test_answers_that_repeat_one_token_are_compared_at_full_length() -> None:
    """difflib takes minutes for such: its work grows with the cube of the length."""
    (only,) = differences([7] * 2048, [7] * 1024 + [8] + [7] * 1023)
    assert (only.op, only.default, only.own) == ("replace", (1024, 1025), (1024, 1025))
    assert [piece.op for piece in differences([7, 8] * 1024, [8, 7] * 1024)] == ["insert", "delete"]
