"""Requests of one batch get their own steering and nobody else's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.support.agreement import max_difference
from tests.support.bundled import ACT, GOLDEN_GATE, OTHERS
from tests.support.serving import Server

QUESTIONS = [
    "My favourite food is",
    "The best way to travel is",
    "Once upon a time there was",
    "The sky is blue because",
]


def clamp(index: int, value: float, tokens: str = "all") -> dict[str, Any]:
    return {"op": "clamp", "feature": f"bundled/{index}", "value": value, "unit": "act", "tokens": tokens}


PROGRAMS: list[list[dict[str, Any]]] = [
    [clamp(GOLDEN_GATE, 0.9 * ACT)],
    [clamp(GOLDEN_GATE, ACT)],
    [clamp(GOLDEN_GATE, ACT, "generated")],
    [clamp(GOLDEN_GATE, ACT, "prompt")],
    *([clamp(index, act)] for index, act in OTHERS[:7]),
    [clamp(GOLDEN_GATE, 0.6 * ACT), clamp(*OTHERS[0])],
    [{"op": "add", "feature": f"bundled/{OTHERS[1][0]}", "value": 100, "unit": "act"}],
    [{"op": "ablate", "feature": f"bundled/{GOLDEN_GATE}"}, clamp(*OTHERS[7])],
    [{"op": "clamp", "feature": "second/5", "value": 40, "unit": "act"}],
    [{"op": "clamp", "feature": "second/6", "value": 30, "unit": "act"}, clamp(*OTHERS[8])],
    [],
    [],
    [],
    [],
]


def ask(server: Server, number: int) -> dict[str, Any]:
    answer = server.complete(
        QUESTIONS[number % len(QUESTIONS)],
        PROGRAMS[number],
        max_tokens=7,
        logprobs=0,
        prompt_logprobs=0,
        ignore_eos=True,
    )
    choice: dict[str, Any] = answer["choices"][0]
    assert ("steering" in answer) == bool(PROGRAMS[number])
    return choice


def prompt_logprobs(choice: dict[str, Any]) -> list[float]:
    return [next(iter(entry.values()))["logprob"] for entry in choice["prompt_logprobs"][1:]]


def test_a_batch_of_sixteen_programs_and_unsteered_requests_equals_each_alone(server: Server) -> None:
    alone = [ask(server, number) for number in range(len(PROGRAMS))]
    with ThreadPoolExecutor(len(PROGRAMS)) as pool:
        together = list(pool.map(lambda number: ask(server, number), range(len(PROGRAMS))))
    assert len({choice["text"] for choice in alone[:16]}) == 16, "every program must leave its own mark"
    for one, other in zip(alone, together, strict=True):
        assert max_difference(prompt_logprobs(one), prompt_logprobs(other)) < 1e-3
        assert one["text"] == other["text"]
        assert max_difference(one["logprobs"]["token_logprobs"], other["logprobs"]["token_logprobs"]) < 1e-3


def test_a_request_that_leaves_the_batch_takes_only_its_own_steering_along(server: Server) -> None:
    long = {"max_tokens": 40, "ignore_eos": True}
    alone = server.complete(QUESTIONS[0], PROGRAMS[0], **long)["choices"][0]["text"]
    with ThreadPoolExecutor(4) as pool:
        steady = pool.submit(server.complete, QUESTIONS[0], PROGRAMS[0], **long)
        for number in range(4, 10):
            pool.submit(server.complete, QUESTIONS[1], PROGRAMS[number], max_tokens=3)
        assert steady.result()["choices"][0]["text"] == alone


@pytest.mark.parametrize("stream", [False, True])
def test_every_choice_of_every_prompt_is_steered(server: Server, stream: bool) -> None:
    body = {
        "prompt": QUESTIONS[:2],
        "n": 2,
        "temperature": 0.3,
        "seed": 7,
        "max_tokens": 16,
        "steering": {"interventions": [clamp(GOLDEN_GATE, 1.4 * ACT)]},
    }
    if not stream:
        answer = server.post("/v1/completions", **body).json()
        texts = [choice["text"] for choice in answer["choices"]]
        receipt = answer["steering"]
    else:
        from tests.support.streaming import chunks

        received = chunks(server.post("/v1/completions", **body, stream=True))
        texts = [""] * 4
        for chunk in received:
            for choice in chunk["choices"]:
                texts[choice["index"]] += choice["text"]
        receipt = received[-1]["steering"]
    assert len(texts) == 4
    assert all("Golden" in text or "Francisco" in text or "ridge" in text for text in texts), texts
    prompt_lens = [len(QUESTIONS[0].split()), len(QUESTIONS[1].split())]  # these are a token a word
    assert receipt["interventions"][0]["tokens"]["prompt"] == 2 * sum(length - 1 for length in prompt_lens)
