"""What is told of a token: its strongest features, that it has none, or that it is not to be looked at."""

from __future__ import annotations

import torch

from saeclamp_server.engine.board import Board, TopStep, strongest
from saeclamp_server.engine.firings import Firings
from saeclamp_server.engine.mapping import Places, Span
from saeclamp_server.engine.placed import Held, PlacedProgram
from saeclamp_server.engine.telling import see
from saeclamp_server.program import Readout, SteeringProgram
from saeclamp_server.scopes import ALL

CPU = torch.device("cpu")


def test_a_token_without_active_features_is_told_from_a_special_one() -> None:
    program = SteeringProgram((), (("a", "sha"),), (), Readout(top_k=2, saes=("a",), tokens=ALL))
    placed = PlacedProgram.place(program, {"a": Held(3, "sha")}, 4)
    span, board = Span(placed, 0, 4, 0, 4, 0, 0), Board(Firings(CPU))
    board.begin(1, 1, {})
    acts = torch.tensor([[0.0, 2.0, 5.0], [0.0, 0.0, 0.0], [7.0, 0.0, 0.0]])  # of positions 1 to 3; 0 is a sink
    board.top["a"] = strongest(acts, TopStep(torch.arange(3), torch.tensor([True, True, False]), 2))
    fetch = see({"request": span}, Places([span]), board, torch.empty(0, dtype=torch.int64), {})
    assert fetch is not None
    readings = fetch()["request"].readings
    assert readings is not None
    assert readings.positions == [1, 2, 3]
    assert readings.top == {"a": [[(2, 5.0), (1, 2.0)], [], None]}
