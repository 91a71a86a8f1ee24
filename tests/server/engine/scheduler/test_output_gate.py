"""A token leaves when the model has read it and no rule has held at it, however steps, drafts and preemptions fall."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saeclamp_server.engine.scheduler.output_gate import Finish, OutputGate
from saeclamp_server.engine.step_report import ReadoutChunk, RequestStepReport
from saeclamp_server.steering.program import ComparisonSpec, ReadoutSpec, RuleSpec, SteeringProgram
from saeclamp_server.steering.token_ranges import ALL, GENERATED, PROMPT

ABORTING = RuleSpec((ComparisonSpec("a", 0, 1.0, True),), 0, aborts=True)


def program(aborts: bool = True, readout: ReadoutSpec | None = None) -> SteeringProgram:
    return SteeringProgram((), (("a", "sha"),), (ABORTING,) if aborts else (), readout)


def readout(*positions: int) -> ReadoutChunk:
    return ReadoutChunk(
        [*positions],
        [[float(at)] for at in positions],
        {"a": [[(at, 1.0)] for at in positions]},
        [[(0, float(at), 0.5)] for at in positions],
    )


def tokens_of(
    holding: OutputGate[int], report: RequestStepReport, tokens: list[int], finish: Finish | None = None
) -> list[int]:
    released = holding.step(report, 0, tokens, tokens, finish)
    assert [waiting.row for waiting in released.waiting] == [waiting.token for waiting in released.waiting]
    return [waiting.token for waiting in released.waiting]


def test_a_token_leaves_one_step_late_and_the_one_beyond_the_last_is_dropped() -> None:
    holding: OutputGate[int] = OutputGate(program(), prompt_len=3, max_tokens=2)
    assert tokens_of(holding, RequestStepReport(0, 3), [70]) == []
    assert tokens_of(holding, RequestStepReport(3, 1), [71]) == [70]
    released = holding.step(RequestStepReport(4, 1), 0, [72], [72], "length")
    assert ([waiting.token for waiting in released.waiting], released.finish) == ([71], "length")


def test_the_token_at_which_a_rule_holds_does_not_leave_and_ends_the_answer() -> None:
    holding: OutputGate[int] = OutputGate(program(), prompt_len=3, max_tokens=9)
    assert tokens_of(holding, RequestStepReport(0, 3), [70]) == []
    assert tokens_of(holding, RequestStepReport(3, 1), [71]) == [70]
    released = holding.step(RequestStepReport(4, 1, abort=4), 0, [72], [72], None)
    assert (released.waiting, released.finish) == ([], "aborted")


def test_a_prompt_at_which_a_rule_holds_gets_no_answer() -> None:
    holding: OutputGate[int] = OutputGate(program(), prompt_len=30, max_tokens=9)
    assert holding.step(RequestStepReport(0, 16), 0, [], [], None).finish is None
    released = holding.step(RequestStepReport(16, 14, abort=20), 0, [70], [70], None)
    assert (released.waiting, released.finish) == ([], "aborted")


@pytest.mark.parametrize("max_tokens", [1, 2, 3])
def test_the_token_that_stops_an_answer_leaves_unread_unless_the_answer_was_complete_before(max_tokens: int) -> None:
    holding: OutputGate[int] = OutputGate(program(), prompt_len=3, max_tokens=max_tokens)
    assert tokens_of(holding, RequestStepReport(0, 3), [70]) == []
    released = holding.step(RequestStepReport(3, 1), 0, [2], [2], "stop")
    tokens = [waiting.token for waiting in released.waiting]
    assert (tokens, released.finish) == (([70], "length") if max_tokens == 1 else ([70, 2], "stop"))


@pytest.mark.parametrize(("aborts", "left"), [(True, [70]), (False, [70, 71])])
def test_a_full_context_costs_the_last_token_only_where_a_rule_would_have_to_see_it(
    aborts: bool, left: list[int]
) -> None:
    holding: OutputGate[int] = OutputGate(program(aborts, ReadoutSpec((("a", 0),))), prompt_len=3, max_tokens=9)
    assert tokens_of(holding, RequestStepReport(0, 3), [70]) == []
    assert tokens_of(holding, RequestStepReport(3, 1), [71], "length") == left


def test_drafts_that_were_not_taken_show_nothing_and_end_nothing() -> None:
    holding: OutputGate[int] = OutputGate(program(readout=ReadoutSpec((("a", 0),))), prompt_len=3, max_tokens=9)
    tokens_of(holding, RequestStepReport(0, 3), [70])
    # read: the token at 3 and drafts at 4, 5, 6, of which the first is taken; 72 comes in place of the second
    report = RequestStepReport(3, 4, abort=5, readout=readout(3, 4, 5, 6))
    released = holding.step(report, 2, [71, 72], [71, 72], None)
    assert [waiting.token for waiting in released.waiting] == [70, 71]
    assert released.finish is None
    assert released.readout == readout(3, 4)
    released = holding.step(RequestStepReport(5, 1, readout=readout(5)), 0, [73], [73], None)
    assert ([waiting.token for waiting in released.waiting], released.readout) == ([72], readout(5))


def test_readings_of_the_prompt_leave_with_the_first_token_and_once() -> None:
    shown = ReadoutSpec((("a", 0),), tokens=ALL)
    holding: OutputGate[int] = OutputGate(program(False, shown), prompt_len=4, max_tokens=9)
    assert holding.step(RequestStepReport(0, 2, readout=readout(1)), 0, [], [], None).readout is None
    first = holding.step(RequestStepReport(2, 2, readout=readout(2, 3)), 0, [70], [70], None)
    assert (first.waiting, first.readout) == ([], None)
    again = holding.step(RequestStepReport(0, 5, readout=readout(1, 2, 3, 4)), 0, [71], [71], None)
    assert ([waiting.token for waiting in again.waiting], again.readout) == ([70], readout(1, 2, 3, 4))


def test_readings_of_the_prompt_alone_hold_nothing_back() -> None:
    shown = ReadoutSpec((("a", 0),), tokens=PROMPT)
    holding: OutputGate[int] = OutputGate(program(False, shown), prompt_len=4, max_tokens=9)
    assert holding.step(RequestStepReport(0, 2, readout=readout(1)), 0, [], [], None).readout is None
    first = holding.step(RequestStepReport(2, 2, readout=readout(2, 3)), 0, [70], [70], None)
    assert ([waiting.token for waiting in first.waiting], first.readout) == ([70], readout(1, 2, 3))


class Step(NamedTuple):
    num_tokens: int
    num_drafts: int
    num_taken: int


steps = st.lists(st.builds(Step, st.integers(1, 9), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)


@given(
    prompt_len=st.integers(1, 20),
    max_tokens=st.integers(1, 12),
    steps=steps,
    fires=st.sets(st.integers(0, 40), max_size=2),
    preempted_at=st.integers(0, 40),
    scope=st.sampled_from([ALL, PROMPT, GENERATED]),
)
def test_what_leaves_is_every_token_before_the_first_at_which_a_rule_holds(
    prompt_len: int, max_tokens: int, steps: list[Step], fires: set[int], preempted_at: int, scope: tuple[object, ...]
) -> None:
    """Position p holds token 100 + p. What is told, chunk by chunk, is what a worker would tell."""
    holding: OutputGate[int] = OutputGate(
        program(readout=ReadoutSpec((("a", 0),), tokens=scope)), prompt_len, max_tokens
    )  # type: ignore[arg-type]
    computed, furthest, sampled, left, seen = 0, 0, 0, [], []
    finish: Finish | None = None
    for number, step in enumerate(steps):
        if number == preempted_at:
            computed = 0
        known = prompt_len + sampled
        num = min(step.num_tokens, known - computed)
        end = computed + num
        drafts = min(step.num_drafts, max_tokens - sampled) if end == known else 0
        taken = min(drafts, step.num_taken)
        new = [100 + known + n for n in range(taken + 1)] if end == known else []
        told_end = end + drafts
        fired = min((at for at in fires if at < told_end), default=None)
        report = RequestStepReport(computed, told_end - computed, fired, readout(*range(computed, told_end)))
        sampled += len(new)
        if sampled >= max_tokens + 1:
            finish = "length"
        computed = end + taken
        furthest = max(furthest, computed)
        released = holding.step(report, drafts - taken, new, new, finish)
        left += [waiting.token for waiting in released.waiting]
        seen += released.readout.positions if released.readout else []
        finish = released.finish
        # nothing leaves that has not been read, or at or behind a firing token
        assert all(token - 100 < furthest for token in left)
        assert all(token - 100 < at for token in left for at in fires)
        if finish:
            break
    assert left == [100 + prompt_len + n for n in range(len(left))]
    assert len(left) <= max_tokens
    assert seen == sorted(set(seen)), "each position is shown once"
    if finish == "length":
        assert len(left) == max_tokens
    if finish == "aborted":
        assert len(left) == max(0, min(fires) - prompt_len)
