"""Every token of a step gets the edits of its own request, whatever the step looks like."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.oracles.reference import touched_positions
from tests.support.token_ranges import SCOPES

from saeclamp_saes.clamping import UPDATES
from saeclamp_server.engine.worker.compiled_program import CompiledProgram, LoadedWeights
from saeclamp_server.engine.worker.read_plan import plan_rules
from saeclamp_server.engine.worker.step_plan import RequestSlice, StepLayout, pairs_by_sae, reads_by_sae
from saeclamp_server.steering.program import ComparisonSpec, EditSpec, RuleSpec, SteeringProgram
from saeclamp_server.steering.token_ranges import ALL, GENERATED, PROMPT, from_positions

HELD = {"a": LoadedWeights(10, "sha-a"), "b": LoadedWeights(5, "sha-b"), "c": LoadedWeights(4, "sha-c")}


def compiled(*edits: EditSpec, prompt_len: int = 4) -> CompiledProgram:
    used = sorted({edit.sae for edit in edits})
    program = SteeringProgram(edits, tuple((name, HELD[name].sha256) for name in used))
    return CompiledProgram.compile(program, HELD, prompt_len)


def test_each_token_carries_the_clamps_of_its_own_request() -> None:
    first = compiled(EditSpec("a", 2, "clamp", 5.0))
    second = compiled(EditSpec("b", 1, "add", -1.0), EditSpec("c", 3, "clamp", 7.0, GENERATED))
    # rows 0-1: an unsteered request; 2-4: positions 0-2 of a prompt of 3; 5: position 9 after a prompt of 4
    pairs = pairs_by_sae([RequestSlice(first, 2, 3, 0, 3, 0, 0), RequestSlice(second, 5, 1, 9, 4, 0, 1)])
    a, b, c = pairs["a"], pairs["b"], pairs["c"]
    assert (a.batch_row.tolist(), a.feature.tolist(), a.slot.tolist()) == ([3, 4], [2, 2], [0, 0])
    assert a.moves.tolist() == [[*UPDATES["clamp"](5.0)]] * 2
    assert (b.batch_row.tolist(), b.feature.tolist(), b.slot.tolist()) == ([5], [1], [1])
    assert b.moves.tolist() == [[*UPDATES["add"](-1.0)]]
    assert (c.batch_row.tolist(), c.feature.tolist(), c.slot.tolist()) == ([5], [3], [2])
    assert (c.prompt.tolist(), c.generated.tolist()) == ([False], [True])


def test_a_step_without_steered_tokens_has_no_pairs() -> None:
    only_prompt = compiled(EditSpec("a", 0, "clamp", 1.0, PROMPT))
    assert pairs_by_sae([]) == {}
    assert pairs_by_sae([RequestSlice(only_prompt, 0, 1, 8, 4, 0, 0)]) == {}
    assert pairs_by_sae([RequestSlice(only_prompt, 0, 1, 0, 4, 0, 0)]) == {}, "position 0 is left alone"
    even_the_first = compiled(EditSpec("a", 0, "clamp", 1.0, PROMPT, special=True))
    assert pairs_by_sae([RequestSlice(even_the_first, 0, 1, 0, 4, 0, 0)])["a"].special.tolist() == [True]
    beyond = compiled(EditSpec("a", 0, "clamp", 1.0, ((9, 9),)))
    assert pairs_by_sae([RequestSlice(beyond, 0, 4, 0, 4, 0, 0)]) == {}, "a scope without positions"


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
    edits = [EditSpec("a", number, "clamp", 1.0, SCOPES[scope][1], special) for number, scope in enumerate(scopes)]
    program = compiled(*edits, prompt_len=prompt_len)
    touched: Counter[tuple[int, int]] = Counter()
    counted: Counter[tuple[int, str]] = Counter()
    edges = [0, *sorted(cut for cut in cuts if cut < num_tokens), num_tokens]
    for start, end in pairwise(edges):
        pairs = pairs_by_sae([RequestSlice(program, first_row, end - start, start, prompt_len, start, 0)]).get("a")
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
    program = compiled(EditSpec("a", 0, "clamp", 1.0))
    (pairs,) = pairs_by_sae([RequestSlice(program, 0, 6, 0, 3, 4, 0)]).values()
    assert pairs.batch_row.tolist() == [1, 2, 3, 4, 5]
    assert pairs.prompt.tolist() == [0, 0, 0, 0, 0]
    assert pairs.generated.tolist() == [0, 0, 0, 1, 1], "a generated token that is recomputed stays a generated token"


def test_spans_of_different_sizes_do_not_mix() -> None:
    one = compiled(EditSpec("a", 1, "clamp", 1.0))
    three = compiled(*(EditSpec("a", index, "add", float(index)) for index in (4, 5, 6)))
    (pairs,) = pairs_by_sae(
        [
            RequestSlice(three, 0, 2, 5, 9, 0, 10),
            RequestSlice(one, 2, 1, 7, 3, 0, 20),
            RequestSlice(three, 3, 1, 1, 9, 0, 30),
        ]
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
    everywhere = compiled(EditSpec("a", 1, "clamp", 1.0, tokens=from_positions(range(1, 2048, 2))))
    tracemalloc.start()
    (pairs,) = pairs_by_sae([RequestSlice(everywhere, 0, 2000, 0, 4000, 0, 0)]).values()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pairs.batch_row.tolist() == [*range(1, 2000, 2)]
    assert most < 1 << 20  # all pairs of its tokens and ranges, two million, took 200 MB


@pytest.mark.parametrize(
    ("edit", "sha256", "error"),
    [
        (EditSpec("nowhere", 0, "clamp", 1.0), "sha-a", KeyError),
        (EditSpec("a", 0, "clamp", 1.0), "sha-of-other-weights", ValueError),
        (EditSpec("a", 10, "clamp", 1.0), "sha-a", ValueError),
        (EditSpec("a", -1, "clamp", 1.0), "sha-a", ValueError),
    ],
)
def test_a_program_for_another_engine_is_not_placed(edit: EditSpec, sha256: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        CompiledProgram.compile(SteeringProgram((edit,), ((edit.sae, sha256),)), HELD, 4)


def test_looks_and_verdicts_have_a_place_each_and_edits_find_the_verdict_of_their_rule() -> None:
    rules = (
        RuleSpec((ComparisonSpec("a", 1, 2.0, True), ComparisonSpec("b", 4, 1.0, False)), ("all", (0, 1)), ALL),
        RuleSpec((ComparisonSpec("a", 3, 0.5, True),), 0, GENERATED),
    )
    program = SteeringProgram(
        (EditSpec("b", 2, "clamp", 1.0, rule=1), EditSpec("b", 3, "clamp", 1.0)),
        (("a", "sha-a"), ("b", "sha-b")),
        rules,
    )
    first, second = (CompiledProgram.compile(program, HELD, prompt_len) for prompt_len in (4, 9))
    slices = [RequestSlice(first, 0, 2, 3, 4, 0, 0, 10), RequestSlice(second, 2, 3, 1, 9, 0, 2, 20)]
    layout = StepLayout(slices)
    assert (layout.num_acts, layout.num_verdicts) == (1 + 2 * 3 + 3 * 3, 1 + 2 * 2 + 3 * 2)
    reads = reads_by_sae(slices, layout)
    # of a/1 at all five tokens, of a/3 at the generated one; a token has three looks
    assert sorted(zip(reads["a"].batch_row, reads["a"].feature, reads["a"].act, strict=True)) == [
        *((0, 1, 1), (1, 1, 4), (1, 3, 6), (2, 1, 7), (3, 1, 10), (4, 1, 13))
    ]
    assert reads["b"].act.tolist() == [2, 5, 8, 11, 14]
    pairs = pairs_by_sae(slices, layout)["b"]
    ruled = pairs.feature == 2
    assert pairs.verdict[ruled].tolist() == [3, 4, 8, 9, 10]
    assert not pairs.verdict[~ruled].any()
    one, other = plan_rules(slices, layout)
    assert (one.form, other.form) == (("all", (0, 1)), 0)
    assert one.act.tolist() == [[1, 2], [4, 5], [7, 8], [10, 11], [13, 14]]
    assert other.in_scope.tolist() == [False, True, False, False, False]
    assert (one.slot.tolist(), other.slot.tolist()) == ([10, 10, 20, 20, 20], [11, 11, 21, 21, 21])
    assert sorted([*one.verdict, *other.verdict]) == [*range(1, 11)]
