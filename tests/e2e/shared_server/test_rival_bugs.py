"""
What other steering servers get wrong, a row each: there the answer is a 200, unsteered or steered by another request.

Rows that need an engine of their own are elsewhere: positions under chunked prefill and preemption in test_differential,
poisoned prefixes in test_prefix_cache, a request that fails in the worker in test_faults, wrong widths and NaN weights in
tests/server/test_fit and test_command_line. Speculative decoding is refused at start.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
from tests.oracles.reference import Move, ReferenceModel
from tests.support.agreement import assert_choice_agrees, max_difference, on_the_wire
from tests.support.bundled import ACT, GOLDEN_GATE, OTHERS
from tests.support.serving import Server
from transformers import PreTrainedTokenizerBase

CLAMP = Move("bundled", GOLDEN_GATE, "clamp", ACT)
OTHER = Move("bundled", OTHERS[0][0], "clamp", OTHERS[0][1])
PARAMS: dict[str, Any] = {"max_tokens": 8, "ignore_eos": True, "logprobs": 0, "return_token_ids": True}
TEXTS = ["My favourite food is", "The best way to travel is", "Once upon a time there was"]


class Engine(NamedTuple):
    server: Server
    oracle: ReferenceModel
    tokenizer: PreTrainedTokenizerBase

    def ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text)["input_ids"]
        return ids

    def assert_steered(self, choice: dict[str, Any], prompt: list[int], moves: list[Move]) -> None:
        """The choice is the oracle's under these moves, and could not be so under none."""
        steered = assert_choice_agrees({"prompt_logprobs": None, **choice}, self.oracle, prompt, moves)
        generated = choice["token_ids"]
        plain = self.oracle.request_logprobs(prompt, generated, []).tokens
        assert not moves or max_difference(plain, steered) > 0.02


def every_prompt_of_a_list(engine: Engine) -> None:
    """vllm-lens steers the first prompt only."""
    prompts = [engine.ids(text) for text in TEXTS]
    answer = engine.server.complete(prompts, on_the_wire([CLAMP]), **PARAMS)
    for choice, prompt in zip(answer["choices"], prompts, strict=True):
        engine.assert_steered(choice, prompt, [CLAMP])


def every_choice_of_n(engine: Engine) -> None:
    """vllm-lens steers no choice where n is above 1."""
    prompt = engine.ids(TEXTS[0])
    likeliest = {"temperature": 1, "top_k": 1}  # vLLM takes no n with temperature 0
    answer = engine.server.complete(prompt, on_the_wire([CLAMP]), n=3, **likeliest, **PARAMS)
    assert len(answer["choices"]) == 3
    for choice in answer["choices"]:
        engine.assert_steered(choice, prompt, [CLAMP])


def the_same_request_again(engine: Engine) -> None:
    """In vllm-lens a second use of the same parameters is unsteered, or steered by another request's vector."""
    prompt = engine.ids(TEXTS[1])
    for moves in ([CLAMP], [CLAMP], [OTHER], [CLAMP], []):
        (choice,) = engine.server.complete(prompt, on_the_wire(moves), **PARAMS)["choices"]
        engine.assert_steered(choice, prompt, moves)


def one_bad_request_in_a_batch(engine: Engine) -> None:
    """In hotwire one malformed request takes the steering off its neighbours."""
    prompt = engine.ids(TEXTS[2])
    bad = [{"op": "clamp", "feature": "bundled/999999", "value": 1, "unit": "act"}]

    def ask(number: int) -> Any:
        moves = bad if number % 2 else on_the_wire([CLAMP])
        return engine.server.post(
            "/v1/completions", prompt=prompt, temperature=0, steering={"interventions": moves}, **PARAMS
        )

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    assert [answer.status_code for answer in answers] == [200, 400] * 4
    for answer in answers[::2]:
        engine.assert_steered(answer.json()["choices"][0], prompt, [CLAMP])


def more_programs_than_there_were_ever_slots_for(engine: Engine) -> None:
    """hotwire never frees a slot: after the last one, requests are silently unsteered."""
    prompt = engine.ids(TEXTS[0])
    values = [40.0 + number / 4 for number in range(300)]

    def ask(value: float) -> dict[str, Any]:
        moves = on_the_wire([Move("bundled", GOLDEN_GATE, "clamp", value)])
        return engine.server.complete(prompt, moves, **PARAMS | {"max_tokens": 2})

    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(ask, values))
    assert [answer["steering"]["interventions"][0]["value_act"] for answer in answers] == values
    for number in (0, 150, 299):
        move = Move("bundled", GOLDEN_GATE, "clamp", values[number])
        assert_choice_agrees({"prompt_logprobs": None, **answers[number]["choices"][0]}, engine.oracle, prompt, [move])


def ids_that_begin_alike(engine: Engine) -> None:
    """interp-engine and vllm-lens find a request by the beginning of its id."""
    prompt = engine.ids(TEXTS[1])
    asked = {"1": [CLAMP], "1-2": [OTHER], "11": [], "0_1": [CLAMP, OTHER]}

    def ask(name: str) -> dict[str, Any]:
        steering = {"steering": {"interventions": on_the_wire(asked[name])}} if asked[name] else {}
        response = engine.server.http.post(
            "/v1/completions",
            json={"model": engine.server.model, "prompt": prompt, "temperature": 0, **PARAMS, **steering},
            headers={"X-Request-Id": name},
        )
        assert response.status_code == 200, response.text
        choice: dict[str, Any] = response.json()["choices"][0]
        return choice

    with ThreadPoolExecutor(4) as pool:
        for name, choice in zip(asked, pool.map(ask, asked), strict=True):
            engine.assert_steered(choice, prompt, asked[name])


def a_batch_mate_that_leaves(engine: Engine) -> None:
    """Where rows are mapped once, those behind a request that ends get its neighbour's steering."""
    prompts = [engine.ids(text) for text in TEXTS]
    asked = [([OTHER], 2), ([CLAMP], 24), ([], 24)]

    def ask(number: int) -> dict[str, Any]:
        moves, num_new = asked[number]
        answer = engine.server.complete(prompts[number], on_the_wire(moves), **PARAMS | {"max_tokens": num_new})
        choice: dict[str, Any] = answer["choices"][0]
        return choice

    with ThreadPoolExecutor(3) as pool:
        for number, choice in enumerate(pool.map(ask, range(3))):
            engine.assert_steered(choice, prompts[number], asked[number][0])


def a_prompt_of_one_token_steered_where_it_is_generated(engine: Engine) -> None:
    """hotwire takes every span of one token for generated, and so steers such a prompt."""
    prompt = engine.ids("The")
    moves = [Move("bundled", GOLDEN_GATE, "clamp", ACT, "generated", special=True)]
    answer = engine.server.complete(prompt, on_the_wire(moves), **PARAMS)
    engine.assert_steered(answer["choices"][0], prompt, moves)
    assert answer["steering"]["interventions"][0]["tokens"] == {"prompt": 0, "generated": 7, "sinks": 0}


def several_edits_of_one_layer(engine: Engine) -> None:
    """In hotwire the last vector of a layer wins; all are to be added up."""
    prompt = engine.ids(TEXTS[2])
    moves = [CLAMP, OTHER, Move("bundled", OTHERS[1][0], "add", 40.0)]
    (choice,) = engine.server.complete(prompt, on_the_wire(moves), **PARAMS)["choices"]
    engine.assert_steered(choice, prompt, moves)


BUGS: list[Callable[[Engine], None]] = [
    every_prompt_of_a_list,
    every_choice_of_n,
    the_same_request_again,
    one_bad_request_in_a_batch,
    more_programs_than_there_were_ever_slots_for,
    ids_that_begin_alike,
    a_batch_mate_that_leaves,
    a_prompt_of_one_token_steered_where_it_is_generated,
    several_edits_of_one_layer,
]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__.replace("_", " "))
def test_what_others_get_wrong_is_right(
    bug: Callable[[Engine], None], server: Server, oracle: ReferenceModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    bug(Engine(server, oracle, tokenizer))
