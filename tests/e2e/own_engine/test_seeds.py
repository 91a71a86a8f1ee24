"""A request's `seed` gives the same text however its prompt is cut, whoever shares the batch, and ends no engine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.agreement import max_difference
from tests.support.checkpoints import make_model, make_sae
from tests.support.serving import Server, serve
from tests.support.streaming import chunks
from transformers import PreTrainedTokenizerBase

from saeclamp_server.engine.worker.cpu_seed_fix import without_generators

TEXT = "The old lighthouse keeper counted the ships that passed the bay at night and wrote their names in a book. "
CHUNK = 32
NUM_NEW = 24
SAMPLED = {"temperature": 1.0, "max_tokens": NUM_NEW, "ignore_eos": True}


def clamp(feature: int, value: float, tokens: str = "all") -> dict[str, Any]:
    item = {"op": "clamp", "feature": f"sae/{feature}", "value": value, "unit": "act", "tokens": tokens}
    return {"steering": {"interventions": [item]}}


# prompt length in tokens, and what else the request asks for
SEEDED: list[tuple[int, dict[str, Any]]] = [
    (150, {"seed": 1}),
    (151, {"seed": 1, **clamp(3, 9.0)}),
    (3 * CHUNK, {"seed": 2}),
    (CHUNK + 1, {"seed": 3, **clamp(40, 7.0, "generated")}),
    (CHUNK, {"seed": 3, "top_p": 0.9}),
    (97, {"seed": 4, "top_k": 50, **clamp(11, -6.0, "prompt")}),
    (130, {"seed": 5, "n": 2}),
    (131, {"seed": 5, "n": 2, **clamp(3, -8.0)}),
    (140, {"seed": 6, "logprobs": 3}),
    (101, {"seed": 7, "prompt_logprobs": 0, "temperature": 0.7, **clamp(5, 9.0)}),
    (120, {"seed": 8, "frequency_penalty": 0.5, "repetition_penalty": 1.2}),
    (110, {"seed": 9, "temperature": 0}),
    (7, {"seed": 10}),
    (9, {"seed": 10, **clamp(3, 9.0)}),
]
Choice = tuple[str, list[float]]
"""A choice's text, and the logprobs of its tokens where they were asked for."""


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> list[str]:
    """A tiny random model with an SAE, and nothing that a prompt could be found in again."""
    folder = tmp_path_factory.mktemp("seeds")
    model = make_model(folder / "model", model_folder)
    sae = make_sae(folder / "sae", layer=1, d_in=64, threshold=0.5)
    flags = [str(model), "--sae", f"sae={sae}", "--served-model-name", "tiny", "--enforce-eager", "--dtype", "float32"]
    return [*flags, "--max-model-len", "512", "--no-enable-prefix-caching", "--block-size", "32"]


@pytest.fixture(scope="module")
def prompt(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids: list[int] = tokenizer(TEXT * 10)["input_ids"]
    return ids[:200]


@pytest.fixture(scope="module")
def whole(flags: list[str], prompt: list[int], tmp_path_factory: pytest.TempPathFactory) -> list[list[Choice]]:
    """What each request gets alone, from an engine that computes any of these prompts in one step."""
    log = tmp_path_factory.mktemp("whole") / "log"
    with serve(log, *flags, "--max-num-batched-tokens", "512", "--max-num-seqs", "8", name="tiny") as server:
        return [ask(server, prompt, number) for number in range(len(SEEDED))]


@pytest.fixture(scope="module")
def cut(
    flags: list[str], prompt: list[int], whole: list[list[Choice]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """
    An engine that computes CHUNK tokens a step, and holds about four of these requests at once.

    whole: computed first, because two engines at a time are too many for a small machine
    """
    log = tmp_path_factory.mktemp("cut") / "log"
    narrow = ["--max-num-batched-tokens", str(CHUNK), "--max-num-seqs", "12", "--num-gpu-blocks-override", "25"]
    with serve(log, *flags, *narrow, name="tiny") as server:
        yield server


def ask(server: Server, prompt: list[int], number: int, stream: bool = False) -> list[Choice]:
    length, params = SEEDED[number]
    # the last tokens, so that no prompt is the beginning of another
    body = {"prompt": prompt[-length:], **SAMPLED, **params}
    if not stream:
        response = server.post("/v1/completions", **body)
        assert response.status_code == 200, response.text
        answer = response.json()
        assert ("steering" in answer) == ("steering" in params)
        return [(choice["text"], logprobs_of(choice)) for choice in answer["choices"]]
    received = chunks(server.post("/v1/completions", **body, stream=True))
    assert ("steering" in received[-1]) == ("steering" in params)
    collected: list[Choice] = [("", [])] * int(params.get("n", 1))
    for choice in (choice for chunk in received for choice in chunk["choices"]):
        text, logprobs = collected[choice["index"]]
        collected[choice["index"]] = (text + choice["text"], logprobs + logprobs_of(choice))
    return collected


def logprobs_of(choice: dict[str, Any]) -> list[float]:
    return list(choice["logprobs"]["token_logprobs"]) if choice.get("logprobs") else []


def assert_same(choices: list[Choice], expected: list[Choice]) -> None:
    assert [text for text, _ in choices] == [text for text, _ in expected]
    for (_, logprobs), (_, expected_logprobs) in zip(choices, expected, strict=True):
        assert len(logprobs) == len(expected_logprobs)
        assert not logprobs or max_difference(logprobs, expected_logprobs) < 1e-3


def num_preemptions(server: Server) -> int:
    (count,) = re.findall(r"^vllm:num_preemptions_total\{.*\} (\S+)$", server.http.get("/metrics").text, re.MULTILINE)
    return int(float(count))


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_cut_gets_the_text_of_the_whole_prompt(
    cut: Server, prompt: list[int], whole: list[list[Choice]], stream: bool
) -> None:
    streams = [params.get("prompt_logprobs") is None for _, params in SEEDED]  # vLLM does not stream these
    for number, expected in enumerate(whole):
        assert_same(ask(cut, prompt, number, stream and streams[number]), expected)


@pytest.mark.parametrize("stream", [False, True])
def test_in_a_full_batch_each_gets_the_text_that_it_gets_alone(
    cut: Server, prompt: list[int], whole: list[list[Choice]], stream: bool
) -> None:
    before = num_preemptions(cut)
    unseeded = {**SAMPLED, "max_tokens": 60}
    with ThreadPoolExecutor(3 * len(SEEDED)) as pool:
        others = [pool.submit(cut.complete, prompt[-length:], **unseeded) for length in (5, 6, 8, 100)]
        asked = [
            pool.submit(ask, cut, prompt, number, stream and SEEDED[number][1].get("prompt_logprobs") is None)
            for number in [*range(len(SEEDED)), *reversed(range(len(SEEDED)))]
        ]
        others += [pool.submit(cut.complete, prompt[-length:], **unseeded) for length in (7, 9, 120)]
        answers = [one.result() for one in asked]
        assert len({other.result()["choices"][0]["text"] for other in others}) == len(others)
    for choices, expected in zip(answers, [*whole, *reversed(whole)], strict=True):
        assert_same(choices, expected)
    assert num_preemptions(cut) > before, "prompts must also have been computed again in the midst of an answer"
    assert cut.complete("Hello", max_tokens=1)["choices"]


def test_choices_and_seeds_differ(cut: Server, prompt: list[int], whole: list[list[Choice]]) -> None:
    for choices in whole:
        assert len({text for text, _ in choices}) == len(choices)
    texts = [cut.complete(prompt[-150:], **SAMPLED, seed=seed)["choices"][0]["text"] for seed in (1, 2, 3, 1)]
    assert len(set(texts)) == 3
    assert texts[0] == texts[3] == whole[0][0][0]


def sampled(discarded: int | None) -> tuple[list[int], dict[int, bytes]]:
    """What vLLM's sampler draws for four rows, of which 1 and 2 have seeds, and the state of these afterwards."""
    import vllm._custom_ops  # noqa: F401 (registers the sampler's kernel)
    from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

    torch.manual_seed(0)
    logits = torch.randn(4, 1000)
    generators = {row: torch.Generator().manual_seed(row) for row in (1, 2)}
    with without_generators(generators, np.arange(4) == discarded):
        tokens, _ = TopKTopPSampler().forward_cpu(logits, generators, None, None)
    return tokens.tolist(), {row: generator.get_state().numpy().tobytes() for row, generator in generators.items()}


@pytest.mark.skipif(torch.cuda.is_available(), reason="on GPUs vLLM's own way stays")
def test_a_discarded_row_changes_no_other_and_draws_nothing_from_its_seed() -> None:
    tokens, states = sampled(None)
    others, spared = sampled(1)
    assert [others[row] for row in (0, 2, 3)] == [tokens[row] for row in (0, 2, 3)]
    assert others[1] != tokens[1]
    assert spared[2] == states[2]
    assert spared[1] != states[1]
    assert spared[1] == torch.Generator().manual_seed(1).get_state().numpy().tobytes()
