"""What is asked of long texts is refused before the engine reads them, or read in part."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from saeclamp.types import Contrast
from saeclamp_server.api.features.contrast import _prompts
from saeclamp_server.api.features.text_activations import read_text_activations
from saeclamp_server.api.likelihoods import Likelihoods
from saeclamp_server.api.model_client import GenerateRequest, GenerateResult, Prompt
from saeclamp_server.api.steering.compare import _refuse_long
from saeclamp_server.errors import InvalidRequestError
from saeclamp_server.steering import SteeringContext


class Tokeniser:
    """Makes as many tokens of a text as it says, and remembers what is run."""

    def __init__(self) -> None:
        self.runs: list[GenerateRequest] = []

    async def from_text(self, text: str, path: str) -> Prompt:
        return Prompt((0,) * int(text))

    async def run(self, run: GenerateRequest, path: str) -> GenerateResult:
        self.runs.append(run)
        return GenerateResult((), "", None, {}, Likelihoods(), Likelihoods(), None)


def test_a_contrast_of_too_many_tokens_names_the_text_at_which_it_is_too_much() -> None:
    model: Any = Tokeniser()
    most = Contrast(positive=("1000000",), negative=("48576",))
    assert [path for _, path in asyncio.run(_prompts(most, model))] == ["positive[0]", "negative[0]"]
    with pytest.raises(InvalidRequestError, match="1048577 tokens; at most 1048576") as refused:
        asyncio.run(_prompts(Contrast(positive=("1000000",), negative=("1", "48576")), model))
    assert refused.value.param == "negative[1]"


def test_answers_to_too_long_a_prompt_are_not_compared() -> None:
    _refuse_long(Prompt((0,) * 16384), "text")
    with pytest.raises(InvalidRequestError, match="16385 tokens; answers to at most 16384") as refused:
        _refuse_long(Prompt((0,) * 16385), "text")
    assert refused.value.param == "text"


@pytest.mark.parametrize(("num_tokens", "num_saes", "num_active"), [(100, 1, 512), (32768, 1, 128), (32768, 2, 64)])
def test_of_a_long_text_fewer_features_are_read_at_each_token(
    served: SteeringContext, num_tokens: int, num_saes: int, num_active: int
) -> None:
    model: Any = Tokeniser()
    saes = ("big", "small")[:num_saes]
    asyncio.run(read_text_activations(model, served, Prompt((0,) * num_tokens), "text", saes=saes))
    (run,) = model.runs
    assert run.steering.program.readout.top_k == num_active
    assert run.num_cells <= 4_194_304
