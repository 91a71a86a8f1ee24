"""Fields that vLLM's request classes have, or that others document, are never taken for steering."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from saeclamp_server.api.steering_body import steering_of
from saeclamp_server.api.strictness.request_fields import FIELDS, made_up_fields
from saeclamp_server.errors import RequestError

GOOD: dict[str, Any] = {"interventions": [{"op": "clamp", "feature": "a/1", "value": 1.0}]}

OPENAI = """
    audio background best_of conversation frequency_penalty function_call functions include input instructions logit_bias
    logprobs max_completion_tokens max_output_tokens max_tokens max_tool_calls messages metadata modalities model moderation
    n parallel_tool_calls prediction presence_penalty previous_response_id prompt prompt_cache_key prompt_cache_retention
    reasoning reasoning_effort response_format safety_identifier seed service_tier stop store stream stream_options suffix
    temperature text tool_choice tools top_logprobs top_p truncation user verbosity web_search_options context_management
    system thinking container mcp_servers stop_sequences top_k output_config betas dimensions encoding_format speed
    transforms models route provider plugins usage guided_json guided_regex keep_alive options think raw images template
    fallbacks cache num_retries timeout api_base drop_params mirostat typical_p grammar json_schema slot_id cache_prompt
    vector_store_ids feature_flags layers extra_headers enable_thinking activation_checkpointing rules_engine
"""


def vllm_requests() -> dict[str, type[BaseModel]]:
    """Every request class of vLLM's servers that generate, score or count, by its name."""
    from vllm.entrypoints.anthropic import protocol as anthropic
    from vllm.entrypoints.generate.generative_scoring import serving as scoring
    from vllm.entrypoints.openai.chat_completion import protocol as chat
    from vllm.entrypoints.openai.completion import protocol as completion
    from vllm.entrypoints.openai.responses import protocol as responses
    from vllm.entrypoints.serve.tokenize import protocol as tokenize

    kinds = {
        name: kind
        for module in (anthropic, chat, completion, responses, scoring, tokenize)
        for name, kind in vars(module).items()
        if name.endswith("Request") and isinstance(kind, type) and issubclass(kind, BaseModel)
    }
    assert len(kinds) >= 7
    return kinds


def fields_of_others() -> set[str]:
    return {*(field for kind in vllm_requests().values() for field in kind.model_fields), *OPENAI.split()}


def test_no_field_of_vllms_or_openais_is_taken_for_steering() -> None:
    fields = fields_of_others() - {"steering"}
    assert len(fields) > 120
    for field in fields:
        steering_of({field: {"a": 1, "b": [{"c": "d"}]}})
        steering_of({field: "steering"})


def test_no_field_of_vllms_or_openais_is_taken_for_a_name_of_what_is_loaded() -> None:
    assert not fields_of_others() - FIELDS


ENDPOINTS = {
    "/v1/chat/completions": "ChatCompletionRequest",
    "/v1/chat/completions/batch": "BatchChatCompletionRequest",
    "/v1/completions": "CompletionRequest",
    "/v1/responses": "ResponsesRequest",
    "/v1/messages": "AnthropicMessagesRequest",
    "/v1/messages/count_tokens": "AnthropicCountTokensRequest",
    "/generative_scoring": "GenerativeScoringRequest",
    "/detokenize": "DetokenizeRequest",
}
BELOW = ("/v1/chat/completions/batch", "/v1/messages/count_tokens")
"""They have fewer fields than those above them, and are sent the same."""


@pytest.mark.parametrize(("path", "kind"), ENDPOINTS.items())
def test_what_users_make_up_may_hold_any_word_on_the_endpoints_that_read_it(path: str, kind: str) -> None:
    fields = vllm_requests()[kind].model_fields
    for field in made_up_fields(""):
        body = {field: {"a": {"steering": GOOD}}}
        if field in fields:
            assert steering_of(body, path) is None, field
        elif field not in ANYBODYS and path not in BELOW:
            with pytest.raises(RequestError, match=f"'{field}' is not read for steering"):
                steering_of(body, path)


ANYBODYS = {
    *("metadata", "functions", "guided_json", "guided_choice", "response_format", "stop", "user", "structured_outputs"),
    "logit_bias",
}
"""OpenAI's or vLLM's own once; whoever still sends them wraps nothing in them."""
