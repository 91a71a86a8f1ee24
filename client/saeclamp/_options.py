"""
Options of requests, typed: what `create` and the other methods take beside the arguments that their signatures name.

Those of completions are the fields of OpenAI's API and of vLLM's server; a field that is not among them goes into
`extra_body`. Those of our own endpoints are the fields of the request that each is named after.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

import httpx

from saeclamp._exceptions import ArgumentTypeError
from saeclamp.types import Aggregate, Feature, FeatureOrder
from saeclamp.types.attribute import TokenLike
from saeclamp.types.refusals import did_you_mean


class CallOptions(TypedDict, total=False):
    """Options of how a request is sent, as in openai-python."""

    extra_body: Mapping[str, Any] | None
    """Fields that are added to the body."""
    extra_headers: Mapping[str, str] | None
    timeout: float | httpx.Timeout | None
    """Seconds without a byte from the server; None: the client's."""


class SamplingOptions(CallOptions, total=False):
    """Fields that both kinds of completions have."""

    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    n: int | None
    max_tokens: int | None
    min_tokens: int
    seed: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    include_stop_str_in_output: bool
    ignore_eos: bool
    presence_penalty: float | None
    frequency_penalty: float | None
    repetition_penalty: float | None
    logit_bias: Mapping[str, float] | None
    bad_words: Sequence[str]
    allowed_token_ids: Sequence[int] | None
    prompt_logprobs: int | None
    skip_special_tokens: bool
    spaces_between_special_tokens: bool
    add_special_tokens: bool
    truncate_prompt_tokens: int | None
    response_format: Mapping[str, Any] | None
    structured_outputs: Mapping[str, Any] | None
    stream_options: Mapping[str, Any] | None
    return_token_ids: bool | None
    return_tokens_as_token_ids: bool | None
    cache_salt: str | None
    priority: int
    request_id: str
    user: str | None


class ChatOptions(SamplingOptions, total=False):
    """Fields of chat completions."""

    max_completion_tokens: int | None
    logprobs: bool | None
    top_logprobs: int
    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any] | None
    parallel_tool_calls: bool | None
    reasoning_effort: str | None
    include_reasoning: bool
    add_generation_prompt: bool
    continue_final_message: bool
    chat_template: str | None
    chat_template_kwargs: Mapping[str, Any] | None
    documents: Sequence[Mapping[str, str]] | None
    echo: bool


class TextOptions(SamplingOptions, total=False):
    """Fields of text completions."""

    logprobs: int | None
    echo: bool | None
    suffix: str | None


class SearchOptions(TypedDict, total=False):
    """Fields of `FeatureQuery`."""

    limit: int
    offset: int
    min_density: float | None
    max_density: float | None
    min_output_score: float | None
    green_zone: bool


class InspectOptions(TypedDict, total=False):
    """Fields of `Inspect`."""

    features: Sequence[Feature]
    top_k: int | None
    saes: Sequence[str] | None
    aggregate: Aggregate
    order: FeatureOrder
    limit: int
    include_template: bool


class ContrastOptions(TypedDict, total=False):
    """Fields of `Contrast`."""

    saes: Sequence[str] | None
    aggregate: Aggregate
    limit: int
    include_template: bool
    seed: int


class AttributeOptions(TypedDict, total=False):
    """Fields of `Attribute`."""

    position: int | None
    target: TokenLike | None
    against: TokenLike | None
    saes: Sequence[str] | None
    num_features: int
    num_pairs: int


class NeighboursOptions(TypedDict, total=False):
    """Fields of `NeighboursQuery`."""

    limit: int


class SuggestOptions(TypedDict, total=False):
    """Fields of `Suggest`."""

    saes: Sequence[str] | None
    num_candidates: int
    strengths: Sequence[float]
    max_tokens: int
    seed: int


class CompareOptions(TypedDict, total=False):
    """Fields of `Compare`."""

    prompted: str | None
    seeds: Sequence[int]
    max_tokens: int
    temperature: float
    top_p: float
    repetition_penalty: float


def check_options(given: Iterable[str], known: type[TypedDict]) -> None:  # type: ignore[valid-type]
    """Refuse an option that is not known: the server would ignore a misspelt one."""
    names = [*known.__annotations__]
    for name in given:
        if name not in names:
            raise ArgumentTypeError(
                f"{name}: unknown option.{did_you_mean(name, ['steering', *names])} A field that this client does not know "
                "goes into 'extra_body'.",
                name,
            )
