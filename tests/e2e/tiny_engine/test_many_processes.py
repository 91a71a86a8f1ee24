"""The same numbers, readings and ends from engines of several processes, and where drafts are verified."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.oracles.reference import Move
from tests.support.agreement import assert_agreement, on_the_wire
from tests.support.differential import completed
from tests.support.serving import Server
from tests.support.tiny_engine import MOVES, tiny_engine
from tests.support.whole_requests import REPEATING, Case, assert_aborted, assert_everything

DRAFTS = '{"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4, "prompt_lookup_min": 2}'
NUM_NEW = 12


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(("--tensor-parallel-size", "2"), id="tensor parallel"),
        pytest.param(("--pipeline-parallel-size", "2"), id="pipeline parallel"),
        pytest.param(("--data-parallel-size", "2"), id="data parallel"),
        pytest.param(("--speculative-config", DRAFTS), id="n-gram drafts"),
    ],
)
def test_answers_readings_and_aborts_are_those_of_one_process(
    tmp_path: Path, model_folder: Path, flags: tuple[str, ...]
) -> None:
    with tiny_engine(tmp_path, model_folder, "llama", "--enforce-eager", *flags) as (server, oracle):
        assert_agreement(server, oracle, REPEATING, [], num_new=NUM_NEW)
        assert_agreement(server, oracle, REPEATING, MOVES, num_new=NUM_NEW)
        # so strong an edit of the last layer repeats one token, which is what drafts guess, unless the prompt misleads them
        strong = [Move("high", 3, "clamp", 1000.0)]
        assert_agreement(server, oracle, REPEATING, strong, num_new=NUM_NEW)
        token = completed(server, REPEATING, {"interventions": on_the_wire(strong)})["choices"][0]["token_ids"][0]
        assert_agreement(server, oracle, [1, token, token, *REPEATING, token], strong, num_new=NUM_NEW)
        if "--speculative-config" in flags:
            assert (
                0 < metric(server, "spec_decode_num_accepted_tokens") < metric(server, "spec_decode_num_draft_tokens")
            )
            assert_sampled_neighbours_change_nothing(server, strong)
        cases = [Case.number(number) for number in range(4)]
        with ThreadPoolExecutor(4) as pool:  # of two engines, both get some
            answers = [*pool.map(lambda case: case.ask(server, NUM_NEW), cases)]
        for case, answer in zip(cases, answers, strict=True):
            assert_everything(case, answer, oracle)
            for sae in ("low", "high"):
                assert_aborted(server, oracle, case.prompt, sae, NUM_NEW)


def assert_sampled_neighbours_change_nothing(server: Server, strong: list[Move]) -> None:
    """Greedy answers, whose drafts are verified with those of requests that are sampled, are what they are alone."""
    prompts = [[*REPEATING, *range(300, 300 + number)] for number in range(6)]
    wanted = {"max_tokens": 24, "ignore_eos": True, "return_token_ids": True}

    def greedy(number: int) -> list[int]:
        moves = on_the_wire(strong) if number % 2 else ()
        tokens: list[int] = server.complete(prompts[number], moves, **wanted)["choices"][0]["token_ids"]
        return tokens

    def sampled(number: int) -> None:
        for seed in range(3):
            server.complete(
                prompts[number], on_the_wire(strong), **wanted, temperature=0.7, top_p=0.9, top_k=40, seed=seed
            )

    alone = [greedy(number) for number in range(6)]
    for _ in range(2):
        with ThreadPoolExecutor(9) as pool:
            neighbours = [pool.submit(sampled, number) for number in range(3)]
            assert [*pool.map(greedy, range(6))] == alone
            for neighbour in neighbours:
                neighbour.result()


def metric(server: Server, name: str) -> float:
    values = re.findall(rf"^vllm:{name}_total\{{.*\}} ([\d.e+]+)$", server.http.get("/metrics").text, re.MULTILINE)
    return sum(map(float, values))
