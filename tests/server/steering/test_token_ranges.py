"""Scopes are ranges whose bounds may wait for the prompt's length: resolved, and compared, like sets of positions."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from saeclamp_server.steering.token_ranges import (
    ALL,
    GENERATED,
    PROMPT,
    PROMPT_END,
    TokenRanges,
    can_overlap,
    from_positions,
    from_prompt_end,
    overlap_matrix,
    resolve_ranges,
)

FAR = 80
"""Beyond every bound in these tests."""

bounds = st.integers(0, 12)
scopes: st.SearchStrategy[TokenRanges] = st.one_of(
    st.sampled_from([ALL, PROMPT, GENERATED]),
    bounds.map(lambda num: ((0, num),)),
    bounds.map(lambda num: ((num, None),)),
    st.sets(bounds, min_size=1, max_size=5).map(from_positions),
    st.sets(bounds, min_size=1, max_size=5).map(lambda some: (*from_positions(some), (PROMPT_END, None))),
    st.sets(st.integers(-12, 12), min_size=1, max_size=5).map(from_positions),
    st.integers(1, 12).map(lambda num: ((from_prompt_end(-num), PROMPT_END),)),
    st.tuples(bounds, st.none() | st.integers(1, 12)).map(
        lambda window: ((from_prompt_end(window[0]), None if window[1] is None else from_prompt_end(sum(window))),)
    ),
)


def members(scope: TokenRanges, prompt_len: int) -> set[int]:
    def number(bound: object) -> int:
        if isinstance(bound, str):
            return max(0, prompt_len + int(bound.removeprefix("prompt_end") or 0))
        return FAR if bound is None else int(str(bound))

    return {position for start, end in scope for position in range(number(start), number(end))}


@given(scope=scopes, prompt_len=st.integers(1, 15))
def test_a_resolved_scope_holds_the_same_positions(scope: TokenRanges, prompt_len: int) -> None:
    found = {position for start, end in resolve_ranges(scope, prompt_len) for position in range(start, min(end, FAR))}
    assert found == members(scope, prompt_len)


@given(scope=scopes, prompt_len=st.integers(1, 15))
def test_resolved_ranges_ascend_and_are_apart(scope: TokenRanges, prompt_len: int) -> None:
    found = resolve_ranges(scope, prompt_len)
    assert all(start < end for start, end in found)
    assert all(before[1] < after[0] for before, after in pairwise(found))


@given(one=scopes, other=scopes, prompt_len=st.integers(1, 15))
def test_two_scopes_meet_where_they_have_a_position_in_common(
    one: TokenRanges, other: TokenRanges, prompt_len: int
) -> None:
    assert can_overlap(one, other, prompt_len) == bool(members(one, prompt_len) & members(other, prompt_len))


@given(one=scopes, other=scopes)
def test_without_a_length_they_meet_if_they_do_in_a_prompt_of_some_length(one: TokenRanges, other: TokenRanges) -> None:
    some = any(members(one, length) & members(other, length) for length in range(1, 40))
    assert can_overlap(one, other) == can_overlap(other, one) == bool(some)


def test_positions_are_kept_in_runs() -> None:
    assert from_positions([7, 1, 2, 2, 3, 9]) == ((1, 4), (7, 8), (9, 10))
    assert from_positions([2, -1, -2, -5, 1]) == (
        (1, 3),
        ("prompt_end-5", "prompt_end-4"),
        ("prompt_end-2", "prompt_end"),
    )


@given(some=st.lists(scopes, min_size=1, max_size=4), prompt_len=st.none() | st.integers(1, 15))
def test_many_scopes_meet_as_each_two_do(some: list[TokenRanges], prompt_len: int | None) -> None:
    expected = [[can_overlap(one, other, prompt_len) for other in some] for one in some]
    assert overlap_matrix(some, prompt_len).tolist() == expected
