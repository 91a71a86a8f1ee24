"""Readouts, rules and aborts on a tiny model, under everything vLLM does to a batch, against the oracle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from tests.oracles.reference import Compared, Move, ReferenceModel, When
from tests.support.agreement import on_the_wire, rules_on_the_wire
from tests.support.differential import (
    BASE,
    FLAGS,
    NEAR_A_JUMP,
    completed,
    streamed_choices,
)
from tests.support.random_requests import Asked, check_batch, random_batches
from tests.support.serving import Server
from tests.support.tiny_engine import tiny_engine

NUM_BATCHES = 30

MAX_FEATURES, MAX_WAITING = 20, 5
FEW_FEATURES = ("--max-features", str(MAX_FEATURES), "--max-waiting", str(MAX_WAITING), "--offload-saes")
"""As many as the largest request below has, so that large ones wait for each other, and rows of features come and go."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[tuple[Server, ReferenceModel]]:
    with tiny_engine(tmp_path_factory.mktemp("tiny"), model_folder, "llama", *FLAGS, *FEW_FEATURES) as running:
        yield running


checked = Counter[str]()


@settings(
    max_examples=NUM_BATCHES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    phases=[Phase.explicit, Phase.generate],
)
@given(batch=random_batches(max_new=40, min_size=3, max_size=6))
def test_rules_and_readouts_of_any_batch_are_the_oracles(
    engine: tuple[Server, ReferenceModel], batch: list[Asked]
) -> None:
    check_batch(engine, batch, checked)


def test_enough_was_checked(engine: tuple[Server, ReferenceModel]) -> None:
    """Runs after the test above."""
    assert checked["rules"] >= 50
    assert checked["held"] >= 20
    assert checked["tokens"] >= 500


NUM_ABORTS = 1000
NUM_AT_ONCE = 25


def test_the_token_at_which_a_rule_holds_never_leaves(engine: tuple[Server, ReferenceModel]) -> None:
    """A thousand random prompts, each answered with and without the rule, streamed and not."""
    server, oracle = engine
    generator = torch.Generator().manual_seed(7)
    aborted = complete = 0
    for number in range(NUM_ABORTS // NUM_AT_ONCE):
        prompts = [
            [1, *torch.randint(20, 40000, (int(length),), generator=generator).tolist()]
            for length in torch.randint(2, 12, (NUM_AT_ONCE,), generator=generator)
        ]
        feature = int(torch.randint(0, 64, (1,), generator=generator))
        rule = When(Compared("high", feature, 3.0), tokens="generated")
        steering = {"rules": rules_on_the_wire([rule])}
        plain = server.complete(prompts, max_tokens=4, ignore_eos=True, return_token_ids=True)["choices"]
        body = {"prompt": prompts, "temperature": 0, "max_tokens": 4, "ignore_eos": True, "steering": steering}
        answer = server.post("/v1/completions", **body, return_token_ids=True, logprobs=0).json()
        fired = {item["choice"]: item for item in answer["steering"]["fired"]}
        streamed = streamed_choices(server, body) if number % 8 == 0 else {}
        for index, prompt in enumerate(prompts):
            full, choice = plain[index]["token_ids"], answer["choices"][index]
            held = oracle_held(oracle, prompt, full, rule)
            cut = held[0] - len(prompt) if held else len(full)
            if near_the_bound(oracle):
                continue
            assert choice["token_ids"] == full[:cut]
            assert len(choice["logprobs"]["tokens"]) == cut
            assert (choice["finish_reason"], choice["stop_reason"]) == ("content_filter" if held else "length", None)
            assert (index in fired) == bool(held)
            if held:
                assert fired[index]["token"] == held[0]
            if streamed:
                assert streamed[index] == (choice["text"], choice["finish_reason"])
            aborted, complete = aborted + bool(held), complete + (not held)
    assert aborted > 100
    assert complete > 100


def oracle_held(oracle: ReferenceModel, prompt: list[int], full: list[int], rule: When) -> list[int]:
    oracle.to_jump = float("inf")
    return oracle.forward([*prompt, *full], len(prompt), [], [rule]).held[0]


def near_the_bound(oracle: ReferenceModel) -> bool:
    return oracle.to_jump < NEAR_A_JUMP


def test_a_prompt_at_which_a_rule_holds_is_not_answered_and_its_neighbours_are(
    engine: tuple[Server, ReferenceModel],
) -> None:
    server, oracle = engine
    prompt = BASE[:40]
    acts = oracle.forward(prompt, len(prompt), [], reads=["low"]).acts["low"]
    at, feature = divmod(int(acts[1:].argmax()), acts.shape[1])
    bound = float(acts[1 + at, feature]) * 0.99
    rule = When(Compared("low", feature, bound))
    steering = {"rules": rules_on_the_wire([rule])}
    with ThreadPoolExecutor(2) as pool:
        neighbour = pool.submit(completed, server, BASE[:9], None, max_tokens=24)
        answer = completed(server, prompt, steering)
        assert len(neighbour.result()["choices"][0]["token_ids"]) == 24
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("", "content_filter")
    assert answer["usage"]["completion_tokens"] == 0
    (fired,) = answer["steering"]["fired"]
    assert fired["token"] <= 1 + at
    assert streamed_choices(server, {"prompt": prompt, "max_tokens": 8, "steering": steering}) == {
        0: ("", "content_filter")
    }


def test_a_rule_that_would_act_before_it_is_known_is_refused(engine: tuple[Server, ReferenceModel]) -> None:
    server, _ = engine
    rule = When(Compared("high", 1, 1.0), (Move("low", 2, "clamp", 1.0),))
    response = server.post("/v1/completions", prompt=BASE, steering={"rules": rules_on_the_wire([rule])})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "steering.rules[0].then[0].feature"
    assert "before the rule's condition is known" in response.json()["error"]["message"]


def test_requests_wait_for_features_and_too_many_of_them_are_refused(engine: tuple[Server, ReferenceModel]) -> None:
    server, _ = engine

    def ask(number: int) -> Any:
        moves = [Move("low", (number + index) % 64, "add", 0.1) for index in range(MAX_FEATURES)]
        body = {"prompt": BASE, "max_tokens": 60, "ignore_eos": True, "steering": {"interventions": on_the_wire(moves)}}
        return server.post("/v1/completions", **body)

    with ThreadPoolExecutor(12) as pool:
        responses = list(pool.map(ask, range(12)))
    refused = [response for response in responses if response.status_code == 429]
    # one is answered and five wait when the others come; who comes later may find room again
    assert 1 <= len(refused) <= 6
    assert all(response.status_code in (200, 429) for response in responses)
    for response in refused:
        assert response.headers["retry-after"] == "1"
        assert response.json()["error"]["code"] == "steering_busy"
    assert ask(0).status_code == 200
    metrics = server.http.get("/metrics").text
    assert "saeclamp_features_in_use 0.0" in metrics
    assert "saeclamp_requests_waiting 0.0" in metrics
    assert f'saeclamp_refusals_total{{code="steering_busy"}} {len(refused)}.0' in metrics
    too_many = [Move("low", index, "add", 0.1) for index in range(MAX_FEATURES + 1)]
    response = server.post("/v1/completions", prompt=BASE, steering={"interventions": on_the_wire(too_many)})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "steering")
