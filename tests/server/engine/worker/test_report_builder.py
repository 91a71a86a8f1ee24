"""What is told of a token: its strongest features, that it has none, or that it is not to be looked at."""

from __future__ import annotations

import numpy as np
import torch

from saeclamp_server.engine.worker.compiled_program import CompiledProgram, LoadedWeights
from saeclamp_server.engine.worker.device_copies import CopyStream
from saeclamp_server.engine.worker.program_tables import ProgramTables
from saeclamp_server.engine.worker.readout_plan import RequestSlice
from saeclamp_server.engine.worker.report_builder import BatchRows, collect_step_report
from saeclamp_server.engine.worker.step_tables import Batch, StepTables, map_tokens
from saeclamp_server.engine.worker.top_features import TopFeatures
from saeclamp_server.engine.worker.torch_executor import TorchExecutor
from saeclamp_server.steering.program import EditSpec, ReadoutSpec, SteeringProgram
from saeclamp_server.steering.token_ranges import ALL, GENERATED

CPU = torch.device("cpu")
HELD = {"a": LoadedWeights(3, "sha")}


class Stepped:
    """Requests of one step, by name, each with its program, prompt, first position and tokens."""

    def __init__(self, **requests: tuple[SteeringProgram, int, int, int]) -> None:
        self.programs = ProgramTables(4, 1, [*HELD.values()], CPU)
        self.step = StepTables(16, torch.zeros(10, dtype=torch.bool), carries=False)
        self.slices, positions, edges = dict[str, RequestSlice](), list[int](), [0]
        for name, (program, prompt_len, position, num_tokens) in requests.items():
            compiled = CompiledProgram.compile(program, HELD, prompt_len)
            number = self.programs.add(compiled)
            self.slices[name] = RequestSlice(compiled, number, edges[-1], num_tokens, position)
            positions += range(position, position + num_tokens)
            edges.append(len(positions))
        numbers = torch.tensor([one.number for one in self.slices.values()]).int()
        ids = torch.full((len(positions),), 5)
        map_tokens(
            Batch(numbers, torch.tensor(edges), torch.tensor(positions), ids, len(ids)), self.programs, self.step
        )

    def report(self, top: dict[str, TopFeatures], last_hidden: torch.Tensor | None = None) -> dict[str, object]:
        telling = {name: one for name, one in self.slices.items() if one.program.reports_steps}
        slices = self.slices.values()
        rows = BatchRows(
            [*self.slices], np.array([one.first_row for one in slices]), np.array([one.position for one in slices])
        )
        if last_hidden is not None:
            TorchExecutor(self.programs, self.step, []).find_lost(last_hidden)
        fetch = collect_step_report(telling, rows, self.programs, self.step, top, {}, CopyStream(CPU))
        # the next step writes to the same tables before the report is fetched
        self.step.acts.zero_()
        self.step.items.zero_()
        self.step.is_lost.fill_(True)
        self.step.program.fill_(-1)
        return fetch()


def top_of(acts: torch.Tensor, top_k: int, is_seen: torch.Tensor | None = None) -> TopFeatures:
    found = acts.topk(top_k, dim=1)
    is_seen = torch.ones(len(acts), dtype=torch.bool) if is_seen is None else is_seen
    return TopFeatures(torch.where(is_seen[:, None], found.values, torch.nan), found.indices)


def test_a_token_without_active_features_is_told_from_a_special_one() -> None:
    program = SteeringProgram((), (("a", "sha"),), (), ReadoutSpec(top_k=2, saes=("a",), tokens=ALL))
    stepped = Stepped(request=(program, 4, 0, 4))
    acts = torch.tensor([[0.0, 2.0, 5.0], [0.0, 0.0, 0.0], [7.0, 0.0, 0.0]])  # of positions 1 to 3; 0 is a sink
    found = stepped.report({"a": top_of(acts, 2, torch.tensor([True, True, False]))})
    readout = found["request"].readout  # type: ignore[attr-defined]
    assert readout.positions == [1, 2, 3]
    assert readout.top == {"a": [[(2, 5.0), (1, 2.0)], [], None]}


def test_each_edit_that_was_made_is_told_beside_what_was_read_elsewhere() -> None:
    edits = (EditSpec("a", 2, "add", 1.0, tokens=GENERATED), EditSpec("a", 1, "add", 1.0))
    readout = ReadoutSpec((("a", 0),), top_k=1, saes=("a",), tokens=GENERATED)
    program = SteeringProgram(edits, (("a", "sha"),), (), readout, itemised=True)
    stepped = Stepped(one=(program, 2, 0, 3), two=(program, 2, 7, 1))
    items, acts = stepped.step.items, stepped.step.acts
    # at row 2 a special token: its edits were not made, and nothing was read
    items[1, 1], items[3, 0], items[3, 1] = (torch.tensor([act, 0.25]) for act in (11.0, 32.0, 31.0))
    acts[3, 0] = 6.5
    found = stepped.report({"a": top_of(torch.tensor([[0.0, 0.0, 5.0], [6.0, 0.0, 0.0]]), 1)})
    one, two = (found[name].readout for name in ("one", "two"))  # type: ignore[attr-defined]
    assert (one.positions, one.edits) == ([1, 2], [[(1, 11.0, 0.25)], []])
    assert (one.top, one.acts) == ({"a": [None, [(2, 5.0)]]}, [[None], [None]])
    assert (two.positions, two.edits, two.top) == ([7], [[(0, 32.0, 0.25), (1, 31.0, 0.25)]], {"a": [[(0, 6.0)]]})
    assert two.acts == [[6.5]]


def test_a_request_whose_vectors_became_infinite_is_told_as_lost_and_its_neighbours_are_not() -> None:
    edited = SteeringProgram((EditSpec("a", 2, "add", 1.0),), (("a", "sha"),), itemised=True)
    read_only = SteeringProgram((), (("a", "sha"),), (), ReadoutSpec(top_k=1, saes=("a",), tokens=ALL))
    stepped = Stepped(
        in_the_op=(edited, 9, 4, 3),
        behind_it=(edited, 9, 4, 3),
        sound=(edited, 9, 4, 3),
        not_edited=(read_only, 9, 4, 3),
    )
    stepped.step.is_lost[1] = True
    last_hidden = torch.zeros(16, 5)
    last_hidden[5, 2] = float("inf")
    last_hidden[9] = float("nan")  # what is not edited cannot be lost; and padding says nothing
    last_hidden[12:] = float("nan")
    found = stepped.report({"a": top_of(torch.eye(3), 1)}, last_hidden)
    assert {name: one.failure for name, one in found.items()} == {  # type: ignore[attr-defined]
        "in_the_op": "its edits left no finite vector at position 5; ask for smaller values",
        "behind_it": "its edits left no finite vector at position 6; ask for smaller values",
        "sound": None,
        "not_edited": None,
    }
