"""
n-gram drafts in vLLM's V2 model runner: answers are those without drafts, and only what stays of a step is counted.

There every step has as many drafts as it may, mostly wrong ones.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from tests.oracles.reference import Compared, Move, ReferenceModel, When
from tests.support.agreement import assert_choice_agrees, on_the_wire, rules_on_the_wire
from tests.support.differential import FLAGS, TOLERANCE, completed, streamed_choices
from tests.support.random_requests import Asked, assert_fired, check_batch, random_batches, some_batches
from tests.support.serving import Server
from tests.support.tiny_engine import tiny_engine

DRAFTS = '{"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4, "prompt_lookup_min": 2}'
NUM_BATCHES = 2
STRONG = 30000.0


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[tuple[Server, ReferenceModel]]:
    folder = tmp_path_factory.mktemp("tiny")
    flags = (*FLAGS, "--max-dose", "1000000", "--speculative-config", DRAFTS)
    with tiny_engine(folder, model_folder, "llama", *flags, runner="V2") as running:
        yield running


checked = Counter[str]()


@some_batches(NUM_BATCHES)
@given(batch=random_batches(max_new=10, min_size=3, max_size=4))
def test_every_answer_of_any_batch_is_the_oracles(engine: tuple[Server, ReferenceModel], batch: list[Asked]) -> None:
    check_batch(engine, batch, checked)


class Guessed:
    """A request whose first three generated tokens and those that follow are guessed by its prompt."""

    def __init__(self, server: Server) -> None:
        # so strong an edit of the last layer gives one token, whatever came before
        first, second = (self._token(server, feature) for feature in (3, 5))
        self.prompt = [1, 400, first, first, first, *[second] * 4, 401, 400]
        end = len(self.prompt)
        self.moves = [
            Move("high", 3, "clamp", STRONG, {"positions": [end - 1, end, end + 1]}),
            Move("high", 5, "clamp", STRONG, {"after": end + 2}),
            Move("low", 40, "add", 0.5, "generated"),
        ]
        self.tokens = [*[first] * 3, *[second] * 5]

    def _token(self, server: Server, feature: int) -> int:
        steering = {"interventions": on_the_wire([Move("high", feature, "clamp", STRONG)])}
        token: int = completed(server, [1, 100], steering, max_tokens=1)["choices"][0]["token_ids"][0]
        return token

    def ask(self, server: Server, rules: list[When], **params: Any) -> dict[str, Any]:
        steering = {"interventions": on_the_wire(self.moves), "rules": rules_on_the_wire(rules)}
        return completed(server, self.prompt, steering, **{"max_tokens": 8, "logprobs": 0, **params})


@pytest.fixture(scope="module")
def guessed(engine: tuple[Server, ReferenceModel]) -> Guessed:
    return Guessed(engine[0])


@pytest.mark.parametrize("num", [8, 4, 3, 2])
def test_drafts_that_are_accepted_beyond_the_longest_answer_are_not_counted(
    engine: tuple[Server, ReferenceModel], guessed: Guessed, num: int
) -> None:
    server, oracle = engine
    before = accepted(server)
    answer = guessed.ask(server, [], max_tokens=num)
    assert_counted(answer, oracle, guessed, num)
    assert accepted(server) - before >= min(3, num - 1)


def test_drafts_that_are_accepted_behind_a_stop_token_are_not_counted(
    engine: tuple[Server, ReferenceModel], guessed: Guessed
) -> None:
    server, oracle = engine
    answer = guessed.ask(server, [], stop_token_ids=[guessed.tokens[3], 7])
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert_counted(answer, oracle, guessed, 4)


def test_a_rule_that_holds_at_rejected_drafts_alone_has_not_held(
    engine: tuple[Server, ReferenceModel], guessed: Guessed
) -> None:
    server, oracle = engine
    always = When(Compared("low", 3, -1.0), (Move("other", 5, "add", 0.5),), tokens="generated")
    answer = guessed.ask(server, [always], max_tokens=6)
    asked = Asked(guessed.prompt, guessed.moves, [always], 6, None)
    assert_fired(asked, answer, oracle)
    ((fired,),) = (answer["steering"]["fired"],)
    assert (fired["token"], fired["num_tokens"]) == (len(guessed.prompt), 5)
    assert answer["steering"]["interventions"][-1]["tokens"] == {"prompt": 0, "generated": 5, "sinks": 0}


def test_the_token_at_which_a_rule_holds_never_leaves_though_it_was_a_draft(
    engine: tuple[Server, ReferenceModel], guessed: Guessed
) -> None:
    server, oracle = engine
    ids = [*guessed.prompt, *guessed.tokens]
    acts = oracle.forward(ids, len(guessed.prompt), guessed.moves, reads=["low"]).acts["low"][len(guessed.prompt) :]
    # which holds at the fourth generated token and not before: they are other tokens
    feature = int((acts[3] - acts[:3].max(dim=0).values).argmax())
    bound = float((acts[3, feature] + acts[:3, feature].max()) / 2)
    rule = When(Compared("low", feature, bound), tokens="generated")
    steering = {"interventions": on_the_wire(guessed.moves), "rules": rules_on_the_wire([rule])}
    answer = guessed.ask(server, [rule])
    (choice,) = answer["choices"]
    assert (choice["token_ids"], choice["finish_reason"]) == (guessed.tokens[:3], "content_filter")
    assert answer["steering"]["fired"][0]["token"] == len(guessed.prompt) + 3
    body = {"prompt": guessed.prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": True, "steering": steering}
    assert streamed_choices(server, body) == {0: (choice["text"], "content_filter")}


def assert_counted(answer: dict[str, Any], oracle: ReferenceModel, guessed: Guessed, num: int) -> None:
    """The answer has `num` tokens, and all but the last of them were edited."""
    (choice,) = answer["choices"]
    assert choice["token_ids"] == guessed.tokens[:num]
    assert_choice_agrees(choice, oracle, guessed.prompt, guessed.moves, TOLERANCE)
    first, second, everywhere = (one["tokens"] for one in answer["steering"]["interventions"])
    assert first == {"prompt": 1, "generated": min(num - 1, 2), "sinks": 0}
    assert second == {"prompt": 0, "generated": max(0, num - 3), "sinks": 0}
    assert everywhere == {"prompt": 0, "generated": num - 1, "sinks": 0}


def accepted(server: Server) -> float:
    metrics = server.http.get("/metrics").text
    (num,) = re.findall(r"^vllm:spec_decode_num_accepted_tokens_total\{.*\} ([\d.e+]+)$", metrics, re.MULTILINE)
    return float(num)


def test_enough_was_checked(engine: tuple[Server, ReferenceModel]) -> None:
    """Runs after the tests above."""
    assert checked["rules"] >= 2
    assert checked["tokens"] >= 10
