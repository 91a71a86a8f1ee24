"""
Fields that requests have, by which what is no field of any is told from them.

A test compares them with vLLM's request classes.
"""

from __future__ import annotations

from collections.abc import Mapping

_GENERATION = """
    add_generation_prompt add_special_tokens allowed_token_ids bad_words best_of cache_salt chat_template
    chat_template_kwargs continue_final_message documents early_stopping ec_transfer_params echo
    enable_response_messages frequency_penalty guided_choice guided_decoding_backend guided_grammar guided_json
    guided_regex guided_whitespace_pattern ignore_eos include_reasoning include_stop_str_in_output kv_transfer_params
    length_penalty logit_bias logprob_token_ids logprobs max_completion_tokens max_tokens media_io_kwargs messages
    min_p min_tokens mm_payload mm_processor_kwargs model n parallel_tool_calls presence_penalty
    previous_input_messages priority prompt prompt_embeds prompt_logprobs reasoning_effort repetition_detection
    repetition_penalty request_id response_format return_mm_kwargs return_prompt_text return_token_ids
    return_token_offsets return_token_strs return_tokens_as_token_ids return_weight_versions
    routed_experts_prompt_start seed session_id skip_special_tokens spaces_between_special_tokens steering stop
    stop_token_ids stream stream_interval stream_options structured_outputs suffix temperature thinking_token_budget
    tokens tool_choice tools top_k top_logprobs top_p truncate_prompt_tokens truncation_side use_beam_search user
    vllm_xargs watermarking
"""
"""Fields of vLLM's endpoints that generate, of now and before."""

_OTHERS = """
    apply_softmax item_first items label_token_ids query queries data data_1 data_2 dimensions encoding_format
"""
"""Fields of vLLM's endpoints that score or embed."""

_APIS = """
    audio background betas container context_management conversation function_call functions include input instructions
    max_output_tokens max_tool_calls mcp_servers metadata modalities moderation output_config prediction
    previous_response_id prompt_cache_key prompt_cache_options prompt_cache_retention reasoning safety_identifier
    service_tier speed stop_sequences store system text thinking truncation verbosity web_search_options
"""
"""Fields of OpenAI's and Anthropic's APIs."""

_CLIENTS = """
    activation_checkpointing api_base cache cache_prompt drop_params enable_thinking extra_body extra_headers fallbacks
    feature_flags grammar images json_schema keep_alive layers mirostat models num_retries options plugins provider raw
    route rules_engine slot_id template think timeout transforms typical_p usage vector_store_ids
"""
"""Fields that popular clients add, and other servers read."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


FIELDS = _names(f"{_GENERATION} {_OTHERS} {_APIS} {_CLIENTS}")
"""Top-level fields that mean something to somebody, and so are nobody's name of a feature."""

_ALL_GENERATION = _names("logit_bias stop user response_format structured_outputs guided_json guided_choice")
_CHAT = _ALL_GENERATION | _names("messages tools tool_choice functions documents metadata")
_COMPLETION = _ALL_GENERATION | _names("prompt")
_RESPONSES = _names("""
    input instructions prompt tools tool_choice metadata text structured_outputs logit_bias stop user
    previous_input_messages
""")
_MESSAGES = _names("messages system tools tool_choice metadata output_config stop_sequences")

_MADE_UP: Mapping[str, frozenset[str]] = {
    "/v1/chat/completions": _CHAT,
    "/v1/completions": _COMPLETION,
    "/v1/responses": _RESPONSES,
    "/v1/messages": _MESSAGES,
    "/tokenize": frozenset({"prompt", "messages", "tools"}),
    "/detokenize": frozenset(),
    "/generative_scoring": frozenset({"query", "items"}),
}
"""Beginning of an endpoint's path to its fields that hold what users make up, where any word may stand."""

_ANYWHERE = frozenset({"queries", "data", "data_1", "data_2"}).union(*_MADE_UP.values())

MESSAGE_FIELDS = _names("""
    role content name type id status tool_calls tool_call_id function_call refusal audio reasoning reasoning_content
    thinking annotations arguments input output outputs action operation result results query queries summary tools
    logs code call_id error environment metadata cache_control documents encrypted_content phase title
""")
"""Fields of messages and of items of `input`, whose values are the user's, or the model's."""


def made_up_fields(path: str) -> frozenset[str]:
    """Look up the fields of an endpoint that hold what users make up; those of all for an endpoint that is not known."""
    return next(
        (fields for beginning, fields in _MADE_UP.items() if path == beginning or path.startswith(f"{beginning}/")),
        _ANYWHERE,
    )
