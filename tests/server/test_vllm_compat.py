"""The seams that differ between vLLM's versions, as each of them has them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.responses import JSONResponse, Response, StreamingResponse
from vllm.exceptions import VLLMValidationError

from saeclamp_server.vllm_compat import (
    answer_to_somebody,
    cpu_block_size,
    fail_grammar,
    finish_reasons,
    import_cli_args,
    raise_of_failed_grammar,
    unsaid_error,
)


def test_the_command_line_is_found() -> None:
    assert import_cli_args().validate_parsed_serve_args


@pytest.mark.parametrize(
    ("block_size", "is_users", "is_mla", "expected"),
    [
        (16, False, False, 128),
        (128, False, False, 128),
        (256, False, False, 256),
        (32, True, False, 32),
        (16, False, True, 16),
    ],
)
def test_a_block_of_the_cache_is_as_large_as_it_will_be(
    block_size: int, is_users: bool, is_mla: bool, expected: int
) -> None:
    cache = SimpleNamespace(block_size=block_size, user_specified_block_size=is_users)
    config = SimpleNamespace(cache_config=cache, model_config=SimpleNamespace(use_mla=is_mla))
    assert cpu_block_size(config) == expected


def test_a_client_that_has_gone_is_answered_with_nothing() -> None:
    assert answer_to_somebody(None) is None
    assert answer_to_somebody(Response()) is None
    for answer in (JSONResponse({}), JSONResponse(None, 400), StreamingResponse(iter(()))):
        assert answer_to_somebody(answer) is answer


def choice(reason: str | None) -> dict[str, Any]:
    return {"index": 0, "delta": {"content": "abort"}, "finish_reason": reason}


@pytest.mark.parametrize("reasons", [["abort"], [None], [None, "stop"], []])
def test_finish_reasons_of_a_chunk_are_read_off_its_text_and_off_itself(reasons: list[str | None]) -> None:
    chunk = {"id": "1", "choices": [choice(reason) for reason in reasons]}
    expected = [reason for reason in reasons if reason]
    text = f"data: {json.dumps(chunk, separators=(',', ':'))}\n\n"
    assert finish_reasons(text) == expected
    chunk = SimpleNamespace(choices=[SimpleNamespace(finish_reason=reason) for reason in reasons])
    assert finish_reasons(chunk) == expected


@pytest.mark.parametrize(
    "event", ["data: [DONE]\n\n", 'data: {"error":{"message":"no"}}\n\n', SimpleNamespace(error="no")]
)
def test_what_is_no_chunk_has_no_finish_reason(event: Any) -> None:
    assert finish_reasons(event) == []


def test_of_errors_in_a_stream_only_those_are_taken_out_that_are_text() -> None:
    assert unsaid_error('data: {"error":{"message":"no"}}\n\n') == '{"error":{"message":"no"}}'
    for event in ("data: [DONE]\n\n", 'data: {"id":"1"}\n\n', SimpleNamespace(error="no"), SimpleNamespace(choices=[])):
        assert unsaid_error(event) is None


def test_a_grammar_is_failed_in_a_set_of_ids_and_in_a_map_to_errors() -> None:
    old = SimpleNamespace(grammar_compile_error_reqs=set())
    fail_grammar(old, "a", "too slow")
    assert old.grammar_compile_error_reqs == {"a"}
    new = SimpleNamespace(grammar_compile_error_reqs={})
    fail_grammar(new, "a", "too slow")
    error = new.grammar_compile_error_reqs["a"]
    assert (error.code, error.message) == ("validation_error", "too slow")


async def answers(*reasons: str | None, raises: Exception | None = None) -> AsyncIterator[Any]:
    for reason in reasons:
        yield SimpleNamespace(outputs=[SimpleNamespace(finish_reason=reason)])
    if raises is not None:
        raise raises


async def passed(outputs: AsyncIterator[Any]) -> tuple[int, str | None]:
    """Number of outputs that pass, and the error's text."""
    num = 0
    try:
        async for _ in raise_of_failed_grammar(outputs, lambda reason: LookupError(reason or "nobody knows")):
            num += 1
    except LookupError as exc:
        return num, str(exc)
    return num, None


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        (lambda: answers(None, None, "stop"), (3, None)),
        (lambda: answers(None, "error"), (1, "nobody knows")),
        (lambda: answers("error"), (0, "nobody knows")),
        (
            lambda: answers(None, raises=VLLMValidationError("Invalid: too slow", parameter="x")),
            (1, "Invalid: too slow"),
        ),
    ],
)
def test_an_answer_that_the_engine_ends_fails_with_the_reason_as_far_as_it_is_known(
    outputs: Any, expected: tuple[int, str | None]
) -> None:
    assert asyncio.run(passed(outputs())) == expected
