"""
vLLM's seams that differ between the versions that are served, 0.32 and 0.33.

Each is asked for by what there is, not by a version's number. Imports vLLM when it is called: importing it takes seconds,
and is for a process that is set up.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

ERROR = 'data: {"error"'
"""Beginning of the event of an error in a stream."""
NOTHING = (b"null", b"")
"""Bodies of vLLM's answer to a client that has gone, of 0.32 and of 0.33."""


def answer_to_somebody(response: Any) -> Any:
    """Return what vLLM's handler answered, but None where the client has gone: 0.33 has an empty response for that."""
    return None if getattr(response, "body", None) == b"" else response


def import_cli_args() -> Any:
    """Import the module of vLLM's command line, `make_arg_parser` and `validate_parsed_serve_args`."""
    try:
        from vllm.entrypoints.common import cli_args
    except ImportError:  # 0.32
        from vllm.entrypoints.launchers import cli_args
    return cli_args


CPU_BLOCK_SIZE = 128
"""Tokens of a block of the KV cache on a CPU, where neither the user nor the model's attention wants another."""


def cpu_block_size(config: Any) -> int:
    """
    Tell how many tokens a block of the KV cache will have on a CPU.

    config: vLLM's, before the engine starts. 0.33 chooses when the model is there, and until then has the size of GPUs
    """
    cache = config.cache_config
    if cache.user_specified_block_size or config.model_config.use_mla:
        return int(cache.block_size)
    return max(int(cache.block_size), CPU_BLOCK_SIZE)


def finish_reasons(chunk: Any) -> list[str]:
    """
    List the finish reasons in a chunk of a streamed chat completion, as vLLM makes `/v1/messages` of it.

    chunk: the text of its event, or since 0.33 the chunk or the error itself
    """
    if not isinstance(chunk, str):
        return [choice.finish_reason for choice in getattr(chunk, "choices", ()) if choice.finish_reason]
    if '"finish_reason":"' not in chunk:  # most have none, and need not be parsed
        return []
    try:
        choices = json.loads(chunk.removeprefix("data: "))["choices"]
    except (ValueError, KeyError):
        return []
    return [choice["finish_reason"] for choice in choices if choice.get("finish_reason")]


def unsaid_error(event: Any) -> str | None:
    """
    Return the JSON of an error in a stream of chat completions of which vLLM makes `/v1/messages`; None for all else.

    event: its text; since 0.33 a chunk or an error, which vLLM says itself
    """
    return event.removeprefix("data: ").strip() if isinstance(event, str) and event.startswith(ERROR) else None


def fail_grammar(scheduler: Any, request_id: str, message: str) -> None:
    """Have vLLM's scheduler end a running request at its next step, because of its grammar."""
    failed = scheduler.grammar_compile_error_reqs
    if isinstance(failed, set):  # 0.32: the answer ends with the finish reason "error"
        failed.add(request_id)
        return
    from vllm.outputs import RequestError

    failed[request_id] = RequestError(code="validation_error", message=message)


async def raise_of_failed_grammar(
    outputs: AsyncIterator[Any], error: Callable[[str | None], Exception]
) -> AsyncIterator[Any]:
    """
    Raise an error where the engine has ended an answer because of its grammar.

    outputs: vLLM's, of a request whose own faults were found before
    error:   makes it of the engine's reason; None where that is not known here
    """
    from vllm.exceptions import VLLMValidationError

    try:
        async for output in outputs:
            if any(one.finish_reason == "error" for one in getattr(output, "outputs", ())):
                break
            yield output
        else:
            return
    except VLLMValidationError as exc:  # since 0.33
        raise error(str(exc.args[0])) from exc
    raise error(None)
