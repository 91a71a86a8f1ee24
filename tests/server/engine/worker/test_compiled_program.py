"""A program becomes rows of the tables, or is refused."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.random_steps import random_form

from saeclamp.types import MAX_AGGREGATES, MAX_INTERVENTIONS, MAX_READ, MAX_RULES, MAX_TESTS
from saeclamp_server.engine.worker.compiled_program import CompiledProgram, LoadedWeights
from saeclamp_server.engine.worker.program_layout import (
    AGGREGATES,
    CARRIED,
    EDITS,
    FIRST,
    FLAGS,
    FOREVER,
    INSTRUCTIONS,
    LAST,
    LASTING,
    MANY,
    NUMBER,
    READS,
    RULE,
    RULES,
    SPECIAL,
    WRITE,
    Operation,
)
from saeclamp_server.steering.program import ComparisonSpec, EditSpec, ReadoutSpec, RuleSpec, SteeringProgram
from saeclamp_server.steering.token_ranges import ALL, GENERATED, PROMPT, TokenRanges, from_positions

HELD = {
    "a": LoadedWeights(10, "sha-a", 0, 1, (1,)),
    "b": LoadedWeights(5, "sha-b", 1, 0, (0,)),
    "carried": LoadedWeights(4, "sha-c", 2, 0, (1, 2)),
}


def compiled(*edits: EditSpec, rules: tuple[RuleSpec, ...] = (), prompt_len: int = 4) -> CompiledProgram:
    program = SteeringProgram(edits, (), rules)
    saes = tuple((name, HELD[name].sha256) for name in sorted(program.sae_names))
    return CompiledProgram.compile(SteeringProgram(edits, saes, rules), HELD, prompt_len)


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        (ALL, (0, FOREVER, 0)),
        (PROMPT, (0, 4, 0)),
        (GENERATED, (4, FOREVER, 0)),
        (((2**40, None),), (FOREVER, FOREVER, 0)),
        (from_positions([3, 5, 6]), (0, 2, MANY)),
    ],
)
def test_a_scope_is_a_range_or_a_run_of_ranges(scope: TokenRanges, expected: tuple[int, int, int]) -> None:
    program = compiled(EditSpec("a", 2, "clamp", 5.0, scope))
    assert tuple(program.edits.ints[0, [FIRST, LAST, FLAGS]].tolist()) == expected
    assert program.ranges.tolist() == ([[3, 4], [5, 7]] if expected[2] else [])


def test_equal_scopes_have_one_run_and_empty_ones_no_row() -> None:
    scattered, nowhere = from_positions([1, 3, 5]), ((9, 9),)
    program = compiled(
        *(EditSpec("a", feature, "add", 1.0, scattered, special=True) for feature in range(3)),
        EditSpec("a", 3, "add", 1.0, nowhere),
    )
    assert program.ranges.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert program.edits.ints[:, [FIRST, LAST, FLAGS, NUMBER]].tolist() == [[0, 3, MANY | SPECIAL, n] for n in range(3)]
    assert program.num_edits == 4


def test_what_reads_in_one_layer_and_writes_in_others_is_read_once_and_written_everywhere() -> None:
    rule = RuleSpec((ComparisonSpec("b", 1, 2.0, True),), 0, lasting=True)
    program = compiled(EditSpec("carried", 3, "add", 1.0, rule=0), rules=(rule,))
    assert program.edits.sites.tolist() == [1, 2]
    assert program.edits.ints[:, [FLAGS, NUMBER, RULE, WRITE]].tolist() == [
        [CARRIED | LASTING, 0, 0, 0],
        [CARRIED | LASTING, 0, 0, 1],
    ]
    assert program.reads.ints[:, [FLAGS, NUMBER]].tolist() == [[0, 0], [CARRIED | LASTING, 0]]


def test_rules_are_judged_at_the_last_site_that_they_read() -> None:
    both = (ComparisonSpec("b", 1, 2.0, True), ComparisonSpec("a", 4, 1.0, False))
    program = compiled(rules=(RuleSpec(both, ("all", (0, ("not", (1,))))), RuleSpec(both[:1], 0)))
    assert program.conditions.sites.tolist() == [0, 1]
    assert program.conditions.ints[:, NUMBER].tolist() == [1, 0]
    assert [rule.site for rule in program.rules] == [1, 0]
    assert program.code.tolist() == [
        [Operation.COMPARE, 0],
        [Operation.COMPARE, 1],
        [Operation.NOT, 1],
        [Operation.ALL, 2],
        [Operation.COMPARE, 2],
    ]
    assert program.bounds[:2].tolist() == [[2.0, 1.0], [1.0, -1.0]]


@pytest.mark.parametrize(
    ("edit", "sha256", "error"),
    [
        (EditSpec("nowhere", 0, "clamp", 1.0), "sha-a", KeyError),
        (EditSpec("a", 0, "clamp", 1.0), "sha-of-other-weights", ValueError),
        (EditSpec("a", 10, "clamp", 1.0), "sha-a", ValueError),
        (EditSpec("a", -1, "clamp", 1.0), "sha-a", ValueError),
        (EditSpec("a", 0, "clamp", 1.0, rule=0), "sha-a", ValueError),
    ],
)
def test_a_program_for_another_engine_is_refused(edit: EditSpec, sha256: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        CompiledProgram.compile(SteeringProgram((edit,), ((edit.sae, sha256),)), HELD, 4)


@given(seed=st.integers(0, 2**32))
def test_the_largest_program_that_is_let_in_has_room(seed: int) -> None:
    random = Random(seed)
    compared = [tuple(ComparisonSpec("a", n % 10, 0.5, True) for n in range(MAX_TESTS))] * MAX_RULES
    compared[0] = tuple(ComparisonSpec("a", n % 10, 0.5, True, "max") for n in range(MAX_AGGREGATES))
    rules = tuple(RuleSpec(one, random_form(random, [*range(MAX_TESTS)])) for one in compared)
    edits = tuple(EditSpec("carried", n % 4, "add", 1.0) for n in range(MAX_INTERVENTIONS))
    readout = ReadoutSpec(tuple(("b", n % 5) for n in range(MAX_READ)), tokens=ALL)
    saes = tuple((name, weights.sha256) for name, weights in HELD.items())
    program = CompiledProgram.compile(SteeringProgram(edits, saes, rules, readout), HELD, 4)
    assert len(program.edits.ints) == 2 * EDITS
    assert len(program.reads.ints) == READS - AGGREGATES + EDITS
    assert len(program.aggregates.ints) == AGGREGATES
    assert program.num_reads == READS
    assert len(program.conditions.ints) == RULES
    assert len(program.code) <= INSTRUCTIONS
