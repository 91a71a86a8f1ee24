"""What the engine remembers of its steered requests, and what it forgets."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saeclamp_server.engine.worker.compiled_program import LoadedWeights
from saeclamp_server.engine.worker.edit_stats import EditStats
from saeclamp_server.engine.worker.request_states import RequestStates, ScheduledRequest
from saeclamp_server.engine.worker.rule_state import RuleState
from saeclamp_server.engine.worker.slot_pool import INITIAL_SLOTS
from saeclamp_server.steering.program import ComparisonSpec, EditSpec, RuleSpec, SteeringProgram
from saeclamp_server.steering.token_ranges import ALL, GENERATED, PROMPT

HELD = {"a": LoadedWeights(10, "sha")}
SPECIAL = [0, 1]
CPU = torch.device("cpu")


def payload(key: str, *edits: EditSpec) -> dict[str, Any]:
    edits = edits or (EditSpec("a", 2, "clamp", 5.0),)
    return {"key": key, "program": SteeringProgram(edits, (("a", "sha"),)).to_json()}


@pytest.fixture
def requests() -> RequestStates:
    return RequestStates(HELD, SPECIAL, EditStats(CPU), RuleState(CPU))


def test_a_request_keeps_its_slots_from_step_to_step(requests: RequestStates) -> None:
    first = requests.slice_of(ScheduledRequest("1", payload("k"), [1, 5, 6], 0, 3, 0))
    other = requests.slice_of(ScheduledRequest("1-2", payload("k"), [1, 5, 6], 3, 3, 0))
    again = requests.slice_of(ScheduledRequest("1", payload("k"), [1, 5, 6], 0, 1, 3))
    assert first is not None
    assert again is not None
    assert other is not None
    assert first.first_slot == again.first_slot != other.first_slot
    assert (first.counted, again.counted) == (0, 3)


def test_prompt_counts_leave_out_position_0_and_special_tokens(requests: RequestStates) -> None:
    edits = [EditSpec("a", index, "add", 1.0, scope) for index, scope in enumerate((ALL, PROMPT, GENERATED))]
    requests.slice_of(ScheduledRequest("1", payload("k", *edits), [9, 5, 1, 6, 0, 7], 0, 6, 0))
    (report,) = requests.collect(["k"])["k"].values()
    assert report.prompt == [3, 3, 0]
    assert report.failure is None


def test_a_failure_is_remembered_reported_and_then_forgotten(requests: RequestStates) -> None:
    bad = payload("k", EditSpec("a", 99, "clamp", 1.0))
    assert requests.slice_of(ScheduledRequest("1", bad, [1, 2], 0, 2, 0)) is None
    assert requests.slice_of(ScheduledRequest("1", bad, [1, 2], 0, 1, 2)) is None
    (report,) = requests.collect(["k"])["k"].values()
    assert report.failure == "ValueError: SAE 'a' has no feature 99."
    assert requests.collect(["k"])["k"] == {}


@pytest.mark.parametrize(
    "broken", [{}, {"key": "k"}, {"key": "k", "program": {}}, {"key": "k", "program": {"edits": [{}]}}]
)
def test_a_payload_that_cannot_be_read_fails_its_request_only(requests: RequestStates, broken: dict[str, Any]) -> None:
    assert requests.slice_of(ScheduledRequest("1", broken, [1, 2], 0, 2, 0)) is None
    assert requests.slice_of(ScheduledRequest("2", payload("good"), [1, 2], 2, 2, 0)) is not None
    assert list(requests.failures) == ["1"]


def test_a_request_that_fails_on_the_way_is_reported_as_failed_only(
    requests: RequestStates, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert requests.slice_of(ScheduledRequest("1", payload("k"), [1, 2], 0, 2, 0)) is not None
    monkeypatch.setattr(requests, "_slice_of", lambda scheduled: 1 / 0)
    assert requests.slice_of(ScheduledRequest("1", payload("k"), [1, 2], 0, 1, 2)) is None
    (report,) = requests.collect(["k"])["k"].values()
    assert report.failure == "ZeroDivisionError: division by zero"
    assert requests.collect(["k"])["k"] == {}


def test_reports_go_to_the_call_that_they_belong_to(requests: RequestStates) -> None:
    for number in range(4):
        requests.slice_of(ScheduledRequest(str(number), payload("even" if number % 2 == 0 else "odd"), [1, 2], 0, 2, 0))
    assert len(requests.collect(["even"])["even"]) == 2
    assert len(requests.collect(["even"])["even"]) == 0
    assert len(requests.collect(["odd"])["odd"]) == 2


def test_the_reports_of_ended_requests_are_kept_small_and_within_a_bound() -> None:
    rules = tuple(
        RuleSpec((ComparisonSpec("a", 1, 0.5, True),) * 16, 0, (*((n, n + 1) for n in range(0, 2000, 2)),))
        for _ in range(16)
    )
    program = SteeringProgram((), (("a", "sha"),), rules).to_json()
    requests = RequestStates(HELD, SPECIAL, EditStats(CPU), RuleState(CPU), uncollected_bytes=100_000)
    for number in range(50):
        scheduled = ScheduledRequest(str(number), {"key": f"k{number}", "program": program}, [1, 2], 0, 2, 0)
        assert requests.slice_of(scheduled) is not None
        requests.end([str(number)])
    kept = [number for number in range(50) if requests.collect([f"k{number}"])[f"k{number}"]]
    assert kept == [*range(36, 50)]  # of 16 rules each: 500 + 16 * 400 bytes
    assert requests.collect(["k49"]) == {"k49": {}}


def test_failures_of_ended_requests_are_kept_within_the_same_bound() -> None:
    requests = RequestStates(HELD, SPECIAL, EditStats(CPU), RuleState(CPU), uncollected_bytes=5_000)
    for number in range(50):
        bad = payload(f"k{number}", EditSpec("a", 99, "clamp", 1.0))
        assert requests.slice_of(ScheduledRequest(str(number), bad, [1, 2], 0, 2, 0)) is None
        requests.end([str(number)])
    assert not requests.failures
    found = {number: requests.collect([f"k{number}"])[f"k{number}"] for number in range(50)}
    assert [number for number, reports in found.items() if reports] == [*range(40, 50)]  # 500 bytes each
    assert found[49]["49"].failure == "ValueError: SAE 'a' has no feature 99."


def test_what_is_abandoned_is_forgotten_at_once_or_when_the_engine_ends_it(requests: RequestStates) -> None:
    for number, key in enumerate(("running", "ended", "answered", "reported")):
        requests.slice_of(ScheduledRequest(str(number), payload(key), [1, 2], 0, 2, 0))
    requests.end(["3"])
    requests.abandon(["running", "ended", "reported"], lambda request_id: request_id in ("0", "2"))
    requests.end(["0"])
    found = requests.collect(["running", "ended", "answered", "reported"])
    assert {key: len(reports) for key, reports in found.items()} == {
        "running": 0,
        "ended": 0,
        "answered": 1,
        "reported": 0,
    }


def test_a_failure_of_an_abandoned_call_is_forgotten_too(requests: RequestStates) -> None:
    bad = payload("k", EditSpec("a", 99, "clamp", 1.0))
    requests.slice_of(ScheduledRequest("1", bad, [1, 2], 0, 2, 0))
    requests.abandon(["k"], lambda request_id: True)
    assert requests.failures
    requests.end(["1"])
    assert not requests.failures


def test_a_request_that_a_step_has_lost_reports_that_and_is_steered_no_more(requests: RequestStates) -> None:
    requests.slice_of(ScheduledRequest("1", payload("k"), [1, 5, 6], 0, 3, 0))
    assert requests.key("1") == "k"
    requests.fail("1", "k", "its edits left no finite vector")
    assert requests.slice_of(ScheduledRequest("1", payload("k"), [1, 5, 6], 0, 1, 3)) is None
    requests.end(["1"])
    (report,) = requests.collect(["k"])["k"].values()
    assert report.failure == "its edits left no finite vector"


def test_the_ledger_sums_per_slot_and_reuses_what_is_released() -> None:
    edit_stats = EditStats(CPU)
    first, second = edit_stats.allocate(2), edit_stats.allocate(2)
    slots = torch.tensor([first, first + 1, first, second])
    sums = torch.tensor([[1.0, 0.0, 3.0, 0.1], [1.0, 0.0, 5.0, 0.2], [0.0, 1.0, 4.0, 0.3], [1.0, 0.0, 9.0, 0.9]])
    peaks = torch.tensor([[3.0, 0.1], [5.0, 0.2], [4.0, 0.3], [9.0, 0.9]])
    edit_stats.add(slots, sums, peaks)
    one, two = edit_stats.read(first, 2)
    assert (one.prompt, one.generated, one.act_sum, one.act_max) == (1, 1, 7.0, 4.0)
    assert (two.prompt, two.generated, two.act_sum) == (1, 0, 5.0)
    assert one.dose_max == pytest.approx(0.3)
    edit_stats.release(first, 2)
    assert edit_stats.allocate(2) == first
    assert edit_stats.read(first, 2)[0].act_sum == 0


def test_the_ledger_grows_without_losing_anything() -> None:
    edit_stats = EditStats(CPU)
    first = edit_stats.allocate(1)
    edit_stats.add(torch.tensor([first]), torch.tensor([[1.0, 0.0, 2.0, 0.5]]), torch.tensor([[2.0, 0.5]]))
    last = [edit_stats.allocate(64) for _ in range(2 * INITIAL_SLOTS // 64)][-1]
    edit_stats.add(torch.tensor([last + 63]), torch.tensor([[0.0, 1.0, 7.0, 0.5]]), torch.tensor([[7.0, 0.5]]))
    assert edit_stats.read(first, 1)[0].act_sum == 2.0
    assert edit_stats.read(last, 64)[63].act_max == 7.0
