"""Steered keys and values are never served to other requests, and equal steering still shares them."""

from __future__ import annotations

from typing import Any

import pytest
from tests.e2e.shared_server.conftest import BLOCK
from tests.oracles.reference import Move, ReferenceModel
from tests.support.agreement import TOLERANCE, VISIBLE, max_difference
from tests.support.bundled import ACT, GOLDEN_GATE, STRENGTH
from tests.support.serving import Server
from transformers import PreTrainedTokenizerBase

STEERED: list[dict[str, Any]] = [{"op": "clamp", "feature": "bundled/golden-gate", "value": STRENGTH}]
PARAMS: dict[str, Any] = {"max_tokens": 8, "ignore_eos": True, "logprobs": 0}
LENGTH, WHOLE = 76, 64
"""Tokens of a prompt, and of its whole blocks."""


def long_prompt(tokenizer: PreTrainedTokenizerBase, start: str) -> list[int]:
    ids: list[int] = tokenizer(start + " The quick brown fox jumps over the lazy dog near the river bank." * 8)[
        "input_ids"
    ]
    return ids[:LENGTH]


def cached(answer: dict[str, Any]) -> int:
    count: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return count


def logprobs(answer: dict[str, Any]) -> list[float]:
    values: list[float] = answer["choices"][0]["logprobs"]["token_logprobs"]
    return values


def test_plain_then_steered_then_plain(server: Server, tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = long_prompt(tokenizer, "First.")
    plain = server.complete(prompt, **PARAMS)
    steered = server.complete(prompt, STEERED, **PARAMS)
    again = server.complete(prompt, **PARAMS)
    assert (cached(plain), cached(steered), cached(again)) == (0, 0, WHOLE)
    assert again["choices"][0]["text"] == plain["choices"][0]["text"]
    assert max_difference(logprobs(again), logprobs(plain)) < TOLERANCE
    assert max_difference(logprobs(steered), logprobs(plain)) > VISIBLE


def test_steered_first_does_not_poison_what_follows(server: Server, tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = long_prompt(tokenizer, "Second.")
    steered = server.complete(prompt, STEERED, **PARAMS)
    plain = server.complete(prompt, **PARAMS)
    assert (cached(steered), cached(plain)) == (0, 0)
    assert max_difference(logprobs(steered), logprobs(plain)) > VISIBLE


def test_identical_steering_shares_and_another_value_does_not(
    server: Server, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompt = long_prompt(tokenizer, "Third.")
    first = server.complete(prompt, STEERED, **PARAMS)
    second = server.complete(prompt, STEERED, **PARAMS)
    other = server.complete(prompt, [{**STEERED[0], "value": 0.73}], **PARAMS)
    assert (cached(first), cached(second), cached(other)) == (0, WHOLE, 0)
    assert second["choices"][0]["text"] == first["choices"][0]["text"]
    assert second["steering"]["spec"] == first["steering"]["spec"] != other["steering"]["spec"]
    counts = [answer["steering"]["interventions"][0]["tokens"]["prompt"] for answer in (first, second)]
    assert counts == [LENGTH - 1, LENGTH - 1], "cached positions are steered too, and are counted"


def test_a_users_own_salt_keeps_its_meaning(server: Server, tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = long_prompt(tokenizer, "Fourth.")
    first = server.complete(prompt, STEERED, cache_salt="tenant-a", **PARAMS)
    same = server.complete(prompt, STEERED, cache_salt="tenant-a", **PARAMS)
    other = server.complete(prompt, STEERED, cache_salt="tenant-b", **PARAMS)
    assert (cached(first), cached(same), cached(other)) == (0, WHOLE, 0)


@pytest.mark.parametrize("tokens", ["prompt", "generated"])
def test_what_was_generated_is_not_reused_as_prompt(
    server: Server, oracle: ReferenceModel, tokenizer: PreTrainedTokenizerBase, tokens: str
) -> None:
    """In the second turn the first answer is prompt, so a scoped program does something else to it."""
    steered = [{**STEERED[0], "tokens": tokens}]
    first_turn = long_prompt(tokenizer, f"Fifth, {tokens}.")[: BLOCK + 8]
    answer = server.complete(first_turn, steered, max_tokens=28, ignore_eos=True, return_token_ids=True)
    second_turn = [*first_turn, *answer["choices"][0]["token_ids"], *tokenizer(" And then? Well,")["input_ids"]]
    again = server.complete(second_turn, steered, return_token_ids=True, **PARAMS)
    own, _ = oracle.generated_logprobs(
        second_turn, again["choices"][0]["token_ids"], [Move("bundled", GOLDEN_GATE, "clamp", ACT, tokens)]
    )
    assert cached(again) == BLOCK, "the one block that was prompt in both turns"
    assert max_difference(logprobs(again), own) < TOLERANCE


SCOPED: dict[str, tuple[Any, int]] = {
    "generated": ("generated", WHOLE),
    "after": ({"after": 42}, BLOCK),
    "late positions": ({"positions": [66, 75]}, WHOLE),
    "early positions": ({"positions": [5]}, 0),
    "prompt": ("prompt", 0),
}
"""Tokens, and how many of a prompt nothing changes, in whole blocks."""


@pytest.mark.parametrize(("tokens", "untouched"), SCOPED.values(), ids=SCOPED.keys())
def test_blocks_before_the_first_edit_are_shared_with_everybody(
    server: Server, oracle: ReferenceModel, tokenizer: PreTrainedTokenizerBase, tokens: Any, untouched: int
) -> None:
    prompt = long_prompt(tokenizer, f"Eighth, {tokens}.")
    steered = [{**STEERED[0], "tokens": tokens}]
    plain = server.complete(prompt, **PARAMS)
    first = server.complete(prompt, steered, return_token_ids=True, **PARAMS)
    second = server.complete(prompt, steered, **PARAMS)
    again = server.complete(prompt, **PARAMS)
    assert [cached(answer) for answer in (plain, first, second, again)] == [0, untouched, WHOLE, WHOLE]
    assert max_difference(logprobs(again), logprobs(plain)) < TOLERANCE
    assert max_difference(logprobs(second), logprobs(first)) < TOLERANCE
    moves = [Move("bundled", GOLDEN_GATE, "clamp", ACT, tokens)]
    own, _ = oracle.generated_logprobs(prompt, first["choices"][0]["token_ids"], moves)
    assert max_difference(logprobs(first), own) < TOLERANCE


def test_a_steered_answer_that_was_generated_is_not_served_to_unsteered_requests(
    server: Server, oracle: ReferenceModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompt = long_prompt(tokenizer, "Ninth.")[: BLOCK + 2]
    steered = [{**STEERED[0], "tokens": "generated"}]
    answer = server.complete(prompt, steered, max_tokens=35, ignore_eos=True, return_token_ids=True)
    longer = [*prompt, *answer["choices"][0]["token_ids"], *tokenizer(" And then? Well,")["input_ids"]]
    plain = server.complete(longer, return_token_ids=True, **PARAMS)
    assert cached(plain) == BLOCK
    own, _ = oracle.generated_logprobs(longer, plain["choices"][0]["token_ids"], [])
    assert max_difference(logprobs(plain), own) < TOLERANCE


def test_a_salt_that_imitates_ours_opens_nothing(server: Server, tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = long_prompt(tokenizer, "Sixth.")
    steered = server.complete(prompt, STEERED, **PARAMS)
    forged = f"saeclamp:{steered['steering']['spec']}"
    assert cached(server.complete(prompt, cache_salt=forged, **PARAMS)) == 0
    other = long_prompt(tokenizer, "Seventh.")
    server.complete(other, cache_salt=forged, **PARAMS)
    assert cached(server.complete(other, STEERED, **PARAMS)) == 0
