"""
Edits, rules, readouts and ends of answers in vLLM's V2 model runner, which GPUs have, by the kernels that GPUs run.

On a CPU all of it goes through Triton's interpreter, so batches are small. Prompts are cut into chunks and do not all fit
into the KV cache, as in the tests of V1.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from tests.oracles.reference import Compared, Move, ReferenceModel, When
from tests.support.agreement import assert_choice_agrees, on_the_wire, rules_on_the_wire
from tests.support.differential import BASE, FLAGS, TOLERANCE, completed, streamed_choices
from tests.support.random_requests import Asked, check_batch, random_batches, some_batches
from tests.support.serving import Server
from tests.support.tiny_engine import tiny_engine

NUM_BATCHES = 4
FEW_ROWS = ("--max-features", "16", "--max-waiting", "8", "--offload-saes")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[tuple[Server, ReferenceModel]]:
    folder = tmp_path_factory.mktemp("tiny")
    with tiny_engine(folder, model_folder, "llama", *FLAGS, *FEW_ROWS, runner="V2") as running:
        yield running


checked = Counter[str]()


@some_batches(NUM_BATCHES)
@given(batch=random_batches(max_new=12, min_size=3, max_size=4))
def test_every_answer_of_any_batch_is_the_oracles(engine: tuple[Server, ReferenceModel], batch: list[Asked]) -> None:
    check_batch(engine, batch, checked)


def test_requests_that_were_preempted_are_steered_and_counted_as_if_they_had_not_been(
    engine: tuple[Server, ReferenceModel],
) -> None:
    server, oracle = engine
    moves = [Move("low", 3, "clamp", 6.0), Move("high", 5, "add", 3.0, "generated")]
    prompts = [[1, *(100 + (37 * number + 11 * nth) % 900 for number in range(60))] for nth in range(4)]
    body = {"prompt": prompts, "max_tokens": 20, "temperature": 0, "ignore_eos": True, "logprobs": 0}
    steering = {"interventions": on_the_wire(moves)}
    answer = server.post("/v1/completions", **body, steering=steering, return_token_ids=True).json()
    for choice in answer["choices"]:
        assert_choice_agrees(choice, oracle, prompts[choice["index"]], moves, TOLERANCE)
    counts = [one["tokens"] for one in answer["steering"]["interventions"]]
    assert counts == [
        {"prompt": 4 * 60, "generated": 4 * 19, "sinks": 0},
        {"prompt": 0, "generated": 4 * 19, "sinks": 0},
    ]
    metrics = server.http.get("/metrics").text
    (preemptions,) = re.findall(r"^vllm:num_preemptions_total\{.*\} ([\d.e+]+)$", metrics, re.MULTILINE)
    assert float(preemptions) > 0


def test_the_token_at_which_a_rule_holds_never_leaves(engine: tuple[Server, ReferenceModel]) -> None:
    server, oracle = engine
    prompt = BASE[:40]
    acts = oracle.forward(prompt, len(prompt), [], reads=["low"]).acts["low"]
    at, feature = divmod(int(acts[1:].argmax()), acts.shape[1])
    rule = When(Compared("low", feature, float(acts[1 + at, feature]) * 0.99))
    steering = {"rules": rules_on_the_wire([rule])}
    answer = completed(server, prompt, steering)
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("", "content_filter")
    body = {"prompt": prompt, "max_tokens": 8, "steering": steering}
    assert streamed_choices(server, body) == {0: ("", "content_filter")}


def test_enough_was_checked(engine: tuple[Server, ReferenceModel]) -> None:
    """Runs after the tests above."""
    assert checked["rules"] >= 4
    assert checked["held"] >= 1
    assert checked["tokens"] >= 20
