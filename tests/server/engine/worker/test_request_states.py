"""What the engine remembers of its steered requests, and what it forgets."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saeclamp_saes import SAE, Site
from saeclamp_server.engine.worker.compiled_program import LoadedWeights
from saeclamp_server.engine.worker.feature_row_cache import FeatureRowCache
from saeclamp_server.engine.worker.program_tables import ProgramTables
from saeclamp_server.engine.worker.request_states import RequestStates
from saeclamp_server.steering.program import ComparisonSpec, EditSpec, RuleSpec, SteeringProgram
from saeclamp_server.steering.token_ranges import ALL, GENERATED, PROMPT

HELD = {"a": LoadedWeights(10, "sha")}
SPECIAL = [0, 1]
CPU = torch.device("cpu")


def payload(key: str, *edits: EditSpec) -> dict[str, Any]:
    edits = edits or (EditSpec("a", 2, "clamp", 5.0),)
    return {"key": key, "program": SteeringProgram(edits, (("a", "sha"),)).to_json()}


def tables(num_programs: int = 8) -> ProgramTables:
    return ProgramTables(num_programs, 1, [*HELD.values()], CPU)


@pytest.fixture
def requests() -> RequestStates:
    return RequestStates(HELD, SPECIAL, tables())


def test_a_request_keeps_its_number_until_it_ends(requests: RequestStates) -> None:
    first = requests.admit("1", payload("k"), [1, 5, 6])
    other = requests.admit("1-2", payload("k"), [1, 5, 6])
    assert first is not None
    assert other is not None
    assert first.number != other.number
    version = requests.version
    assert requests.admit("1", payload("k"), [1, 5, 6]) is first
    assert requests.version == version
    number = first.number
    requests.end(["1"])
    assert requests.version > version
    again = requests.admit("3", payload("k"), [1, 5, 6])
    assert again is not None
    assert again.number == number


def test_a_preempted_request_gives_its_number_to_another_and_comes_back_with_its_counters() -> None:
    own = tables(1)
    requests = RequestStates(HELD, SPECIAL, own)
    first = requests.admit("1", payload("k"), [1, 5, 6])
    assert first is not None
    own.sums[0, 0] = torch.tensor([2.0, 1.0, 7.0, 0.5, 0.0, 0.0])
    own.headers[0, 3] = 6
    requests.preempt(["1", "nobody", "1"])
    assert first.number is None
    second = requests.admit("2", payload("k"), [1, 5, 6])
    assert second is not None
    assert not own.sums[0].any()
    assert requests.admit("3", payload("k"), [1, 5, 6]) is None
    assert "no room for another" in requests.failures["3"][1]
    requests.end(["2"])
    assert requests.admit("1", payload("k"), [1, 5, 6]) is first
    assert own.headers[0, 3] == 6
    requests.preempt(["1"])
    reports = requests.collect(["k"])["k"]
    assert (reports["1"].tallies[0]["act_sum"], reports["2"].tallies[0]["act_sum"]) == (7.0, 0.0)
    assert reports["3"].failure is not None


def test_a_request_holds_the_rows_of_its_features_as_long_as_it_has_a_number() -> None:
    here = (Site("resid_post", 0),)
    zeros = torch.zeros(10, 4)
    sae = SAE(here, here, zeros.T, torch.zeros(10), zeros, torch.zeros(4), torch.zeros(10))
    cache, own = FeatureRowCache(sae, 2, CPU), tables(2)
    requests = RequestStates(HELD, SPECIAL, own, {0: cache})
    first = requests.admit("1", payload("k", *(EditSpec("a", index, "add", 1.0) for index in (7, 3, 7))), [1, 5])
    assert first is not None
    rows = own.edits.ints[:3, 6].tolist()
    assert rows[0] == rows[2] != rows[1]
    assert {*rows} == {0, 1}
    requests.preempt(["1"])
    second = requests.admit("2", payload("k", EditSpec("a", 5, "add", 1.0)), [1, 5])
    assert second is not None
    assert requests.admit("1", payload("k"), [1, 5]) is first
    assert cache.sae.d_sae == 4, "all three are held at once"
    requests.end(["1", "2"])
    assert cache.num_held == 0


def test_prompt_counts_leave_out_position_0_and_special_tokens(requests: RequestStates) -> None:
    edits = [EditSpec("a", index, "add", 1.0, scope) for index, scope in enumerate((ALL, PROMPT, GENERATED))]
    requests.admit("1", payload("k", *edits), [9, 5, 1, 6, 0, 7])
    (report,) = requests.collect(["k"])["k"].values()
    assert report.prompt == [3, 3, 0]
    assert report.failure is None


def test_a_failure_is_remembered_reported_and_then_forgotten(requests: RequestStates) -> None:
    bad = payload("k", EditSpec("a", 99, "clamp", 1.0))
    assert requests.admit("1", bad, [1, 2]) is None
    assert requests.admit("1", bad, [1, 2]) is None
    (report,) = requests.collect(["k"])["k"].values()
    assert report.failure == "ValueError: SAE 'a' has no feature 99."
    assert requests.collect(["k"])["k"] == {}


@pytest.mark.parametrize(
    "broken", [{}, {"key": "k"}, {"key": "k", "program": {}}, {"key": "k", "program": {"edits": [{}]}}]
)
def test_a_payload_that_cannot_be_read_fails_its_request_only(requests: RequestStates, broken: dict[str, Any]) -> None:
    assert requests.admit("1", broken, [1, 2]) is None
    assert requests.admit("2", payload("good"), [1, 2]) is not None
    assert list(requests.failures) == ["1"]


def test_a_request_that_fails_on_the_way_is_reported_as_failed_only(
    requests: RequestStates, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert requests.admit("1", payload("k"), [1, 2]) is not None
    monkeypatch.setattr(requests, "_admit", lambda *args: 1 / 0)
    assert requests.admit("1", payload("k"), [1, 2]) is None
    (report,) = requests.collect(["k"])["k"].values()
    assert report.failure == "ZeroDivisionError: division by zero"
    assert requests.collect(["k"])["k"] == {}


def test_reports_go_to_the_call_that_they_belong_to(requests: RequestStates) -> None:
    for number in range(4):
        requests.admit(str(number), payload("even" if number % 2 == 0 else "odd"), [1, 2])
    assert len(requests.collect(["even"])["even"]) == 2
    assert len(requests.collect(["even"])["even"]) == 0
    assert len(requests.collect(["odd"])["odd"]) == 2


def test_the_reports_of_ended_requests_are_kept_small_and_within_a_bound() -> None:
    rules = tuple(
        RuleSpec((ComparisonSpec("a", 1, 0.5, True),) * 16, 0, (*((n, n + 1) for n in range(0, 2000, 2)),))
        for _ in range(16)
    )
    program = SteeringProgram((), (("a", "sha"),), rules).to_json()
    requests = RequestStates(HELD, SPECIAL, tables(), uncollected_bytes=100_000)
    for number in range(50):
        assert requests.admit(str(number), {"key": f"k{number}", "program": program}, [1, 2]) is not None
        requests.end([str(number)])
    kept = [number for number in range(50) if requests.collect([f"k{number}"])[f"k{number}"]]
    assert kept == [*range(46, 50)]  # 4,500 bytes each, and for 16 rules of 16 comparisons 16 * (400 + 16 * 40)
    assert requests.collect(["k49"]) == {"k49": {}}


def test_failures_of_ended_requests_are_kept_within_the_same_bound() -> None:
    requests = RequestStates(HELD, SPECIAL, tables(), uncollected_bytes=5_000)
    for number in range(50):
        bad = payload(f"k{number}", EditSpec("a", 99, "clamp", 1.0))
        assert requests.admit(str(number), bad, [1, 2]) is None
        requests.end([str(number)])
    assert not requests.failures
    found = {number: requests.collect([f"k{number}"])[f"k{number}"] for number in range(50)}
    assert [number for number, reports in found.items() if reports] == [*range(40, 50)]  # 500 bytes each
    assert found[49]["49"].failure == "ValueError: SAE 'a' has no feature 99."


def test_what_is_abandoned_is_forgotten_at_once_or_when_the_engine_ends_it(requests: RequestStates) -> None:
    for number, key in enumerate(("running", "ended", "answered", "reported")):
        requests.admit(str(number), payload(key), [1, 2])
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
    requests.admit("1", bad, [1, 2])
    requests.abandon(["k"], lambda request_id: True)
    assert requests.failures
    requests.end(["1"])
    assert not requests.failures


def test_a_request_that_a_step_has_lost_reports_that_and_steps_on_their_way_are_as_before(
    requests: RequestStates,
) -> None:
    request = requests.admit("1", payload("k"), [1, 5, 6])
    assert requests.key("1") == "k"
    version = requests.version
    requests.fail("1", "k", "its edits left no finite vector")
    assert requests.admit("1", payload("k"), [1, 5, 6]) is request
    assert requests.version > version, "the coming steps tell the scheduler"
    requests.fail("1", "k", "its next step left none either")
    requests.preempt(["1"])
    assert requests.admit("1", payload("k"), [1, 5, 6]) is None
    requests.end(["1"])
    (report,) = requests.collect(["k"])["k"].values()
    assert report.failure == "its edits left no finite vector"
