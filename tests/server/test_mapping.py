"""Every token of a step gets the edits of its own request, whatever the step looks like."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.reference import Tokens, touched_positions

from saeclamp_saes.clamping import MOVES
from saeclamp_server.engine.worker.compiled_program import Held, PlacedProgram
from saeclamp_server.engine.worker.read_plan import rule_rows
from saeclamp_server.engine.worker.step_plan import Places, Span, looks_by_sae, pairs_by_sae
from saeclamp_server.steering.program import Comparison, Edit, Rule, SteeringProgram
from saeclamp_server.steering.token_ranges import ALL, GENERATED, PROMPT, Scope, of_positions

HELD = {"a": Held(10, "sha-a"), "b": Held(5, "sha-b"), "c": Held(4, "sha-c")}
SCOPES: dict[str, tuple[Tokens, Scope]] = {
    "all": ("all", ALL),
    "prompt": ("prompt", PROMPT),
    "generated": ("generated", GENERATED),
    "first": ({"first": 7}, ((0, 7),)),
    "after": ({"after": 12}, ((12, None),)),
    "positions": ({"positions": [0, 1, 2, 9, 31]}, ((0, 3), (9, 10), (31, 32))),
}
"""As the oracle and as a program says it."""


def placed(*edits: Edit, prompt_len: int = 4) -> PlacedProgram:
    used = sorted({edit.sae for edit in edits})
    program = SteeringProgram(edits, tuple((name, HELD[name].sha256) for name in used))
    return PlacedProgram.place(program, HELD, prompt_len)


def test_each_token_carries_the_clamps_of_its_own_request() -> None:
    first = placed(Edit("a", 2, "clamp", 5.0))
    second = placed(Edit("b", 1, "add", -1.0), Edit("c", 3, "clamp", 7.0, GENERATED))
    # rows 0-1: an unsteered request; 2-4: positions 0-2 of a prompt of 3; 5: position 9 after a prompt of 4
    pairs = pairs_by_sae([Span(first, 2, 3, 0, 3, 0, 0), Span(second, 5, 1, 9, 4, 0, 1)])
    a, b, c = pairs["a"], pairs["b"], pairs["c"]
    assert (a.batch_row.tolist(), a.feature.tolist(), a.slot.tolist()) == ([3, 4], [2, 2], [0, 0])
    assert a.moves.tolist() == [[*MOVES["clamp"](5.0)]] * 2
    assert (b.batch_row.tolist(), b.feature.tolist(), b.slot.tolist()) == ([5], [1], [1])
    assert b.moves.tolist() == [[*MOVES["add"](-1.0)]]
    assert (c.batch_row.tolist(), c.feature.tolist(), c.slot.tolist()) == ([5], [3], [2])
    assert (c.prompt.tolist(), c.generated.tolist()) == ([False], [True])


def test_a_step_without_steered_tokens_has_no_pairs() -> None:
    only_prompt = placed(Edit("a", 0, "clamp", 1.0, PROMPT))
    assert pairs_by_sae([]) == {}
    assert pairs_by_sae([Span(only_prompt, 0, 1, 8, 4, 0, 0)]) == {}
    assert pairs_by_sae([Span(only_prompt, 0, 1, 0, 4, 0, 0)]) == {}, "position 0 is left alone"
    even_the_first = placed(Edit("a", 0, "clamp", 1.0, PROMPT, special=True))
    assert pairs_by_sae([Span(even_the_first, 0, 1, 0, 4, 0, 0)])["a"].special.tolist() == [True]
    beyond = placed(Edit("a", 0, "clamp", 1.0, ((9, 9),)))
    assert pairs_by_sae([Span(beyond, 0, 4, 0, 4, 0, 0)]) == {}, "a scope without positions"


@given(
    prompt_len=st.integers(1, 30),
    num_generated=st.integers(0, 10),
    cuts=st.sets(st.integers(1, 38)),
    scopes=st.lists(st.sampled_from(sorted(SCOPES)), min_size=1, max_size=5),
    special=st.booleans(),
    first_row=st.integers(0, 100),
)
def test_any_chunking_touches_and_counts_the_same_positions_once(
    prompt_len: int, num_generated: int, cuts: set[int], scopes: list[str], special: bool, first_row: int
) -> None:
    num_tokens = prompt_len + num_generated
    edits = [Edit("a", number, "clamp", 1.0, SCOPES[scope][1], special) for number, scope in enumerate(scopes)]
    program = placed(*edits, prompt_len=prompt_len)
    touched: Counter[tuple[int, int]] = Counter()
    counted: Counter[tuple[int, str]] = Counter()
    edges = [0, *sorted(cut for cut in cuts if cut < num_tokens), num_tokens]
    for start, end in pairwise(edges):
        pairs = pairs_by_sae([Span(program, first_row, end - start, start, prompt_len, start, 0)]).get("a")
        if pairs is None:
            continue
        for batch_row, feature, prompt, generated in zip(
            pairs.batch_row, pairs.feature, pairs.prompt, pairs.generated, strict=True
        ):
            touched[int(batch_row) - first_row + start, int(feature)] += 1
            counted[int(feature), "prompt"] += int(prompt)
            counted[int(feature), "generated"] += int(generated)
    expected = {
        number: touched_positions(num_tokens, prompt_len, SCOPES[scope][0], special)
        for number, scope in enumerate(scopes)
    }
    assert touched == Counter((position, number) for number, positions in expected.items() for position in positions)
    for number, positions in expected.items():
        assert counted[number, "prompt"] == sum(position < prompt_len for position in positions)
        assert counted[number, "generated"] == sum(position >= prompt_len for position in positions)


def test_positions_recomputed_after_a_preemption_are_edited_but_not_counted_again() -> None:
    program = placed(Edit("a", 0, "clamp", 1.0))
    (pairs,) = pairs_by_sae([Span(program, 0, 6, 0, 3, 4, 0)]).values()
    assert pairs.batch_row.tolist() == [1, 2, 3, 4, 5]
    assert pairs.prompt.tolist() == [0, 0, 0, 0, 0]
    assert pairs.generated.tolist() == [0, 0, 0, 1, 1], "a generated token that is recomputed stays a generated token"


def test_spans_of_different_sizes_do_not_mix() -> None:
    one = placed(Edit("a", 1, "clamp", 1.0))
    three = placed(*(Edit("a", index, "add", float(index)) for index in (4, 5, 6)))
    (pairs,) = pairs_by_sae(
        [Span(three, 0, 2, 5, 9, 0, 10), Span(one, 2, 1, 7, 3, 0, 20), Span(three, 3, 1, 1, 9, 0, 30)]
    ).values()
    columns = (pairs.batch_row, pairs.feature, pairs.moves[:, 0], pairs.slot, pairs.generated)
    assert sorted(zip(*(column.tolist() for column in columns), strict=True)) == [
        (0, 4, 4, 10, False),
        (0, 5, 5, 11, False),
        (0, 6, 6, 12, False),
        (1, 4, 4, 10, False),
        (1, 5, 5, 11, False),
        (1, 6, 6, 12, False),
        (2, 1, 1, 20, True),
        (3, 4, 4, 30, False),
        (3, 5, 5, 31, False),
        (3, 6, 6, 32, False),
    ]


def test_scattered_positions_cost_no_more_than_the_tokens_that_they_touch() -> None:
    everywhere = placed(Edit("a", 1, "clamp", 1.0, tokens=of_positions(range(1, 2048, 2))))
    tracemalloc.start()
    (pairs,) = pairs_by_sae([Span(everywhere, 0, 2000, 0, 4000, 0, 0)]).values()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pairs.batch_row.tolist() == [*range(1, 2000, 2)]
    assert most < 1 << 20  # all pairs of its tokens and ranges, two million, took 200 MB


@pytest.mark.parametrize(
    ("edit", "sha256", "error"),
    [
        (Edit("nowhere", 0, "clamp", 1.0), "sha-a", KeyError),
        (Edit("a", 0, "clamp", 1.0), "sha-of-other-weights", ValueError),
        (Edit("a", 10, "clamp", 1.0), "sha-a", ValueError),
        (Edit("a", -1, "clamp", 1.0), "sha-a", ValueError),
    ],
)
def test_a_program_for_another_engine_is_not_placed(edit: Edit, sha256: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        PlacedProgram.place(SteeringProgram((edit,), ((edit.sae, sha256),)), HELD, 4)


def test_looks_and_verdicts_have_a_place_each_and_edits_find_the_verdict_of_their_rule() -> None:
    rules = (
        Rule((Comparison("a", 1, 2.0, True), Comparison("b", 4, 1.0, False)), ("all", (0, 1)), ALL),
        Rule((Comparison("a", 3, 0.5, True),), 0, GENERATED),
    )
    program = SteeringProgram(
        (Edit("b", 2, "clamp", 1.0, rule=1), Edit("b", 3, "clamp", 1.0)), (("a", "sha-a"), ("b", "sha-b")), rules
    )
    first, second = (PlacedProgram.place(program, HELD, prompt_len) for prompt_len in (4, 9))
    spans = [Span(first, 0, 2, 3, 4, 0, 0, 10), Span(second, 2, 3, 1, 9, 0, 2, 20)]
    places = Places(spans)
    assert (places.num_acts, places.num_verdicts) == (1 + 2 * 3 + 3 * 3, 1 + 2 * 2 + 3 * 2)
    looks = looks_by_sae(spans, places)
    # of a/1 at all five tokens, of a/3 at the generated one; a token has three looks
    assert sorted(zip(looks["a"].batch_row, looks["a"].feature, looks["a"].act, strict=True)) == [
        *((0, 1, 1), (1, 1, 4), (1, 3, 6), (2, 1, 7), (3, 1, 10), (4, 1, 13))
    ]
    assert looks["b"].act.tolist() == [2, 5, 8, 11, 14]
    pairs = pairs_by_sae(spans, places)["b"]
    ruled = pairs.feature == 2
    assert pairs.verdict[ruled].tolist() == [3, 4, 8, 9, 10]
    assert not pairs.verdict[~ruled].any()
    one, other = rule_rows(spans, places)
    assert (one.form, other.form) == (("all", (0, 1)), 0)
    assert one.act.tolist() == [[1, 2], [4, 5], [7, 8], [10, 11], [13, 14]]
    assert other.in_scope.tolist() == [False, True, False, False, False]
    assert (one.slot.tolist(), other.slot.tolist()) == ([10, 10, 20, 20, 20], [11, 11, 21, 21, 21])
    assert sorted([*one.verdict, *other.verdict]) == [*range(1, 11)]
