"""What is told of a token: its strongest features, that it has none, or that it is not to be looked at."""

from __future__ import annotations

import torch

from saeclamp_server.engine.worker.compiled_program import CompiledProgram, LoadedWeights
from saeclamp_server.engine.worker.report_builder import collect_step_report
from saeclamp_server.engine.worker.rule_state import RuleState
from saeclamp_server.engine.worker.step_outputs import StepOutputs, TopFeaturesInputs, top_features
from saeclamp_server.engine.worker.step_plan import RequestSlice, StepLayout, pairs_by_sae
from saeclamp_server.steering.program import EditSpec, ReadoutSpec, SteeringProgram
from saeclamp_server.steering.token_ranges import ALL, GENERATED

CPU = torch.device("cpu")


def test_a_token_without_active_features_is_told_from_a_special_one() -> None:
    program = SteeringProgram((), (("a", "sha"),), (), ReadoutSpec(top_k=2, saes=("a",), tokens=ALL))
    compiled = CompiledProgram.compile(program, {"a": LoadedWeights(3, "sha")}, 4)
    req_slice, step_outputs = RequestSlice(compiled, 0, 4, 0, 4, 0, 0), StepOutputs(RuleState(CPU))
    step_outputs.begin(1, 1, {})
    acts = torch.tensor([[0.0, 2.0, 5.0], [0.0, 0.0, 0.0], [7.0, 0.0, 0.0]])  # of positions 1 to 3; 0 is a sink
    step_outputs.top["a"] = top_features(acts, TopFeaturesInputs(torch.arange(3), torch.tensor([True, True, False]), 2))
    fetch = collect_step_report(
        {"request": req_slice}, StepLayout([req_slice]), step_outputs, torch.empty(0, dtype=torch.int64), {}
    )
    assert fetch is not None
    readout = fetch()["request"].readout
    assert readout is not None
    assert readout.positions == [1, 2, 3]
    assert readout.top == {"a": [[(2, 5.0), (1, 2.0)], [], None]}


def test_each_edit_that_was_made_is_told_beside_what_was_read_elsewhere() -> None:
    edits = (EditSpec("a", 2, "add", 1.0, tokens=GENERATED), EditSpec("a", 1, "add", 1.0))
    program = SteeringProgram(
        edits, (("a", "sha"),), (), ReadoutSpec(top_k=1, saes=("a",), tokens=GENERATED), itemised=True
    )
    compiled = CompiledProgram.compile(program, {"a": LoadedWeights(3, "sha")}, 2)
    slices = [RequestSlice(compiled, 0, 3, 0, 2, 0, 0), RequestSlice(compiled, 3, 1, 7, 2, 7, 2)]
    layout, step_outputs = StepLayout(slices), StepOutputs(RuleState(CPU))
    step_outputs.begin(1, 1, {}, layout.all_items)
    pairs = pairs_by_sae(slices, layout)["a"]
    for row, feature, item in zip(pairs.batch_row.tolist(), pairs.feature.tolist(), pairs.item.tolist(), strict=True):
        if (row, feature) != (2, 1):  # as if it were a special token
            step_outputs.items[item] = torch.tensor([10.0 * row + feature, 0.25])
    step_outputs.top["a"] = top_features(
        torch.tensor([[0.0, 0.0, 5.0], [6.0, 0.0, 0.0]]), TopFeaturesInputs(torch.arange(2), torch.ones(2) > 0, 1)
    )
    fetch = collect_step_report(
        {"one": slices[0], "two": slices[1]}, layout, step_outputs, torch.empty(0, dtype=torch.int64), {}
    )
    assert fetch is not None
    one, two = (fetch()[name].readout for name in ("one", "two"))
    assert one is not None
    assert two is not None
    assert (one.positions, one.edits) == ([1, 2], [[(1, 11.0, 0.25)], [(0, 22.0, 0.25)]])
    assert one.top == {"a": [None, [(2, 5.0)]]}
    assert (two.positions, two.edits, two.top) == ([7], [[(0, 32.0, 0.25), (1, 31.0, 0.25)]], {"a": [[(0, 6.0)]]})


def test_a_request_whose_vectors_became_infinite_is_told_as_lost_and_its_neighbours_are_not() -> None:
    edited = SteeringProgram((EditSpec("a", 2, "add", 1.0),), (("a", "sha"),), itemised=True)
    read_only = SteeringProgram((), (("a", "sha"),), (), ReadoutSpec(top_k=1, saes=("a",), tokens=ALL))
    loaded = {"a": LoadedWeights(3, "sha")}
    slices = {
        name: RequestSlice(CompiledProgram.compile(program, loaded, 9), 3 * number, 3, 4, 9, 4, number)
        for number, (name, program) in enumerate(
            {"in the op": edited, "behind it": edited, "sound": edited, "not edited": read_only}.items()
        )
    }
    layout, step_outputs = StepLayout([*slices.values()]), StepOutputs(RuleState(CPU))
    step_outputs.begin(1, 1, {}, layout.all_items, num_rows=12)
    step_outputs.lost[1] = True
    last_hidden = torch.zeros(16, 5)
    last_hidden[5, 2] = float("inf")
    last_hidden[9] = float("nan")  # what is not edited cannot be lost; and padding says nothing
    last_hidden[12:] = float("nan")
    step_outputs.top["a"] = top_features(torch.eye(3), TopFeaturesInputs(torch.arange(3), torch.ones(3) > 0, 1))
    fetch = collect_step_report(slices, layout, step_outputs, torch.empty(0, dtype=torch.int64), {}, last_hidden)
    assert fetch is not None
    report = fetch()
    assert {name: one.failure for name, one in report.items()} == {
        "in the op": "its edits left no finite vector at position 5; ask for smaller values",
        "behind it": "its edits left no finite vector at position 6; ask for smaller values",
        "sound": None,
        "not edited": None,
    }
