"""What the engine says of a call's sequences is put beside their tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from saeclamp_server.api.openai.sequence_tracker import SequenceTracker, Strongest
from saeclamp_server.steering.program import EXTRA_ARGS_KEY


def test_strongest_features_are_read_like_the_pairs_that_they_were_made_of() -> None:
    pairs = [[7, 2.5], [1, -0.1]]
    strongest = Strongest(pairs)
    assert [*strongest] == [(7, 2.5), (1, -0.1)]
    assert (len(strongest), strongest[1], strongest[:1]) == (2, (1, -0.1), [(7, 2.5)])
    assert not Strongest([])


def test_readings_arrive_with_their_positions_and_go_with_their_call() -> None:
    sequences = SequenceTracker()
    processor = SimpleNamespace(add_request=lambda *args: None, process_outputs=lambda outputs: None)
    sequences.listen(processor)
    sequences.begin("call", 1)
    payload = {"key": "call", "prompt": 0}
    request = SimpleNamespace(
        request_id="a-1", prompt_token_ids=[5, 6], sampling_params=SimpleNamespace(extra_args={EXTRA_ARGS_KEY: payload})
    )
    processor.add_request(request, None)
    readings = {
        "positions": [0, 1],
        "acts": [[None], [0.5]],
        "top": {"bundled": [None, [[3, 1.5]]], "other": [None, []]},
        "edits": [[], []],
    }
    output: Any = SimpleNamespace(request_id="a-1", kv_transfer_params={EXTRA_ARGS_KEY: readings, "theirs": 1})
    processor.process_outputs([output])
    assert output.kv_transfer_params == {"theirs": 1}
    first, second = (sequences.sequence("call", 0).readings[position] for position in (0, 1))
    assert first.is_empty
    assert not second.is_empty
    assert {sae: rows and [*rows] for sae, rows in second.top.items()} == {"bundled": [(3, 1.5)], "other": []}
    assert sequences.end("call")
    assert not sequences.end("call")
    processor.process_outputs([SimpleNamespace(request_id="a-1", kv_transfer_params={EXTRA_ARGS_KEY: readings})])
