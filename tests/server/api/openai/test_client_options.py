"""The client's typed options are fields that the server knows: vLLM ignores others, and would ignore a misspelt one."""

from __future__ import annotations

import pytest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest

from saeclamp._options import CallOptions, ChatOptions, TextOptions


@pytest.mark.parametrize(
    ("options", "request_type"), [(ChatOptions, ChatCompletionRequest), (TextOptions, CompletionRequest)]
)
def test_every_option_of_a_completion_is_a_field_of_vllms_request(options: type, request_type: type) -> None:
    names = set(options.__annotations__) - set(CallOptions.__annotations__)
    assert names - set(request_type.model_fields) == set()  # type: ignore[attr-defined]
    assert {"temperature", "max_tokens", "seed", "stop", "repetition_penalty", "logprobs"} <= names
