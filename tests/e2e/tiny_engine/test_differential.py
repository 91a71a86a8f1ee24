"""
Random programs, prompts and batches on a tiny model, under everything vLLM does to a batch, against the oracle.

Prompts are cut into chunks, share prefixes, and do not all fit into the KV cache, so that requests are preempted and what
they had generated is computed again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.oracles.reference import Compared, Move, ReferenceModel, When, touched_positions
from tests.support.agreement import assert_choice_agrees, on_the_wire, rules_on_the_wire
from tests.support.checkpoints import SINK_ID, SPECIAL_IDS
from tests.support.differential import (
    BASE,
    FLAGS,
    MAX_MODEL_LEN,
    NEAR_A_JUMP,
    TOLERANCE,
    features,
    kinds,
    prompts,
    scopes,
)
from tests.support.serving import Server
from tests.support.tiny_engine import tiny_engine

NUM_BATCHES = 60

LAST = "high"
"""An SAE behind the last layer: its edits show at the very position and nowhere else."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[tuple[Server, ReferenceModel]]:
    with tiny_engine(tmp_path_factory.mktemp("tiny"), model_folder, "llama", *FLAGS) as running:
        yield running


class Asked(NamedTuple):
    prompt: list[int]
    moves: list[Move]
    num_new: int
    prompt_logprobs: bool


programs = st.dictionaries(features, st.tuples(kinds, scopes, st.booleans()), max_size=4).map(
    lambda moves: [
        Move(sae, index, op, 0.0 if op == "ablate" else value, tokens, special)
        for (sae, index), ((op, value), tokens, special) in moves.items()
    ]
)
batches = st.lists(
    st.builds(Asked, prompts, programs, st.integers(1, MAX_MODEL_LEN - 102), st.booleans()), min_size=1, max_size=8
)

checked = 0


def answered(server: Server, asked: Asked) -> dict[str, Any]:
    prompt_logprobs = {"prompt_logprobs": 0} if asked.prompt_logprobs else {}
    return server.complete(
        asked.prompt,
        on_the_wire(asked.moves),
        max_tokens=asked.num_new,
        logprobs=0,
        return_token_ids=True,
        ignore_eos=True,
        **prompt_logprobs,
    )


@settings(
    deadline=None,
    max_examples=NUM_BATCHES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=[Phase.explicit, Phase.generate],  # to shrink a batch says little: what fails depends on what ran before
)
@given(batch=batches)
def test_every_answer_of_any_batch_is_the_oracles(engine: tuple[Server, ReferenceModel], batch: list[Asked]) -> None:
    global checked
    server, oracle = engine
    with ThreadPoolExecutor(len(batch)) as pool:
        answers = list(pool.map(lambda asked: answered(server, asked), batch))
    for asked, answer in zip(batch, answers, strict=True):
        (choice,) = answer["choices"]
        assert len(choice["token_ids"]) == asked.num_new
        oracle.to_jump = float("inf")
        try:
            assert_choice_agrees(choice, oracle, asked.prompt, asked.moves, TOLERANCE)
        except AssertionError:
            if oracle.to_jump > NEAR_A_JUMP:
                raise
            continue
        assert_receipt_counts(asked, choice["token_ids"], answer.get("steering"))
        checked += 1


def assert_receipt_counts(asked: Asked, generated: list[int], receipt: dict[str, Any] | None) -> None:
    """Every touched position is counted once, however often it was computed; the last token is never read."""
    ids = [*asked.prompt, *generated[:-1]]
    for number, move in enumerate(asked.moves):
        touched = touched_positions(len(ids), len(asked.prompt), move.tokens, move.special)
        touched = [position for position in touched if move.special or ids[position] not in SPECIAL_IDS]
        sinks = [position for position in touched if not move.special and ids[position] == SINK_ID]
        in_prompt, sinks_in_prompt = (sum(at < len(asked.prompt) for at in some) for some in (touched, sinks))
        assert receipt is not None
        counts = receipt["interventions"][number]["tokens"]
        assert counts["generated"] == len(touched) - in_prompt - (len(sinks) - sinks_in_prompt)
        # where the prompt was cached it is not known which of its tokens are sinks
        assert len(sinks) - sinks_in_prompt <= counts["sinks"] <= len(sinks)
        assert counts["prompt"] + counts["generated"] + counts["sinks"] == len(touched)


def test_enough_was_checked_and_requests_were_preempted(engine: tuple[Server, ReferenceModel]) -> None:
    """Runs after the test above."""
    assert checked >= 200
    metrics = engine[0].http.get("/metrics").text
    (preemptions,) = re.findall(r"^vllm:num_preemptions_total\{.*\} ([\d.e+]+)$", metrics, re.MULTILINE)
    assert float(preemptions) > 0
    (hits,) = re.findall(r"^vllm:prefix_cache_hits_total\{.*\} ([\d.e+]+)$", metrics, re.MULTILINE)
    assert float(hits) > 0


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize(
    "tokens",
    ["all", "prompt", "generated", {"first": 50}, {"after": 50}, {"positions": [0, 1, 47, 48, 49, 60, 75]}],
    ids=str,
)
def test_exactly_the_positions_in_scope_are_steered(
    engine: tuple[Server, ReferenceModel], tokens: Any, special: bool
) -> None:
    """Behind the last layer an edit changes what is predicted at its position, and nothing else."""
    server, oracle = engine
    prompt = [*BASE, 305, 2, 300, *BASE[1:9]]
    asked = Asked(prompt, [Move(LAST, 3, "add", 25.0, tokens, special)], 12, True)
    (choice,) = answered(server, asked)["choices"]
    generated = choice["token_ids"]
    steered = [
        entry[str(token)]["logprob"] for entry, token in zip(choice["prompt_logprobs"][1:], prompt[1:], strict=True)
    ]
    steered += choice["logprobs"]["token_logprobs"]
    unsteered = oracle.request_logprobs(prompt, generated, []).tokens
    changed = [n for n, pair in enumerate(zip(steered, unsteered, strict=True)) if abs(pair[0] - pair[1]) > 1e-3]
    ids = [*prompt, *generated[:-1]]
    in_scope = touched_positions(len(ids), len(prompt), tokens, special)
    assert changed == [position for position in in_scope if special or ids[position] not in SPECIAL_IDS]


def test_sinks_in_the_middle_of_a_text_are_left_out_and_counted(engine: tuple[Server, ReferenceModel]) -> None:
    server, oracle = engine
    prompt = [*BASE[:20], SINK_ID, *BASE[20:50], SINK_ID, SINK_ID, *BASE[1:9]]
    moves = [
        Move(LAST, 3, "add", 25.0),
        Move("low", 5, "add", 4.0, {"first": 30}),
        Move("low", 6, "add", 4.0, "prompt", special=True),
    ]
    rule = When(("not", (Compared("low", 7, 1e6),)), (Move(LAST, 4, "add", 9.0, "prompt"),))
    body = {
        "prompt": prompt,
        "max_tokens": 6,
        "temperature": 0,
        "ignore_eos": True,
        "prompt_logprobs": 0,
        "logprobs": 0,
    }
    steering = {
        "interventions": on_the_wire(moves),
        "rules": rules_on_the_wire([rule]),
        "readout": {"features": ["low/1"], "top_k": 2, "tokens": "prompt"},
    }
    answer = server.post("/v1/completions", **body, steering=steering, return_token_ids=True).json()
    (choice,) = answer["choices"]
    assert_choice_agrees(choice, oracle, prompt, moves, TOLERANCE, [rule])
    counts = [one["tokens"] for one in answer["steering"]["interventions"]]
    num = len(prompt)
    assert counts == [
        {"prompt": num - 4, "generated": 5, "sinks": 3},
        {"prompt": 28, "generated": 0, "sinks": 1},
        {"prompt": num, "generated": 0, "sinks": 0},
        {"prompt": num - 4, "generated": 0, "sinks": 0},
    ]
    assert any("attention sinks" in warning and "at 3 of" in warning for warning in answer["steering"]["warnings"])
    shown = choice["steering"]["prompt_tokens"]
    assert [at for at, token in enumerate(shown) if token is None] == [0, 20, 51, 52]


def test_a_request_for_more_than_the_servers_dose_is_refused(engine: tuple[Server, ReferenceModel]) -> None:
    server, _ = engine
    for value, status in ((40.0, 200), (60.0, 400)):
        move = {"op": "add", "feature": f"{LAST}/3", "value": value, "unit": "resid_norm"}
        response = server.post("/v1/completions", prompt=BASE, max_tokens=1, steering={"interventions": [move]})
        assert response.status_code == status, response.text
    assert response.json()["error"]["code"] == "dose_too_large"
    assert "by 60 times" in response.json()["error"]["message"]
