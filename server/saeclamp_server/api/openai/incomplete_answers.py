"""
Marks of incomplete answers on vLLM's other generation endpoints: the engine ended them early, because the server stops.

vLLM calls it completed on `/v1/responses`, and on `/v1/messages` ends it without a reason, which Anthropic's clients take
for an answer that is whole. Chat completions have a word for it: `finish_reason: "abort"`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from typing import Any, Literal

from openai.types.responses import ResponseOutputItemDoneEvent
from openai.types.responses.response import IncompleteDetails
from vllm.entrypoints.openai.responses.protocol import ResponseCompletedEvent, ResponsesResponse
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response

from saeclamp_server.api.error_envelope import ANTHROPIC_PATH, written
from saeclamp_server.vllm_compat import finish_reasons

ABORT = "abort"
"""vLLM's finish reason, and the reason in `incomplete_details`: OpenAI has none for it."""
MESSAGE = "The server is stopping, and ended this answer before it was complete."
OVERLOADED = "overloaded_error"
"""Type of Anthropic's errors after which a client asks again, or another server."""


class _ResponseIncompleteEvent(ResponseCompletedEvent):
    type: Literal["response.incomplete"]


def say_what_was_cut_short(state: Any) -> None:
    """
    Have `/v1/responses` and `/v1/messages` say of an answer that the engine aborted that it is not complete.

    state: vLLM's app state
    """
    if state.openai_serving_responses is not None:
        _in_responses(state.openai_serving_responses)
    if state.anthropic_serving_messages is not None:
        _in_messages(state.anthropic_serving_messages)


def is_cut_short(event: Mapping[str, Any]) -> bool:
    """Tell whether an event ends a stream of `/v1/messages` that the engine aborted."""
    error = event.get("error")
    return event.get("type") == "error" and isinstance(error, dict) and error.get("type") == OVERLOADED


def _in_responses(handler: Any) -> None:
    whole, streamed = handler.responses_full_generator, handler.responses_stream_generator
    create, retrieve = handler.create_responses, handler.retrieve_responses

    async def told(request: Any, params: Any, results: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
        response = await whole(request, params, results, context, *args, **kwargs)
        if isinstance(response, ResponsesResponse) and _is_aborted(context):
            response.status = "incomplete"
            # unchecked, because OpenAI's type does not allow this reason
            response.incomplete_details = IncompleteDetails.model_construct(reason=ABORT)
            for item in response.output[-1:]:  # those before it had ended
                _say_incomplete(item)
        return response

    async def told_events(request: Any, params: Any, results: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
        async for event in streamed(request, params, results, context, *args, **kwargs):
            if isinstance(event, ResponseOutputItemDoneEvent) and _is_aborted(context):
                _say_incomplete(event.item)
            yield event

    # not in `told_events`: vLLM itself waits for the event "completed" of what runs in the background
    async def created(*args: Any, **kwargs: Any) -> Any:
        return _ended(await create(*args, **kwargs))

    async def retrieved(*args: Any, **kwargs: Any) -> Any:
        return _ended(await retrieve(*args, **kwargs))

    handler.responses_full_generator, handler.responses_stream_generator = told, told_events
    handler.create_responses, handler.retrieve_responses = created, retrieved


def _ended(answer: Any) -> Any:
    """Name the last event of a stream after what it says; what is no stream stays as it is."""
    return _events(answer) if hasattr(answer, "__aiter__") else answer


async def _events(events: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for event in events:
        if isinstance(event, ResponseCompletedEvent) and _reason(event.response) == ABORT:
            yield _ResponseIncompleteEvent.model_construct(
                type="response.incomplete", sequence_number=event.sequence_number, response=event.response
            )
        else:
            yield event


def _is_aborted(context: Any) -> bool:
    """Tell whether the engine aborted a vLLM context's answer: the simple context keeps outputs, others the reason."""
    outputs = getattr(getattr(context, "last_output", None), "outputs", None)
    return ABORT in (getattr(context, "finish_reason", None), outputs and outputs[0].finish_reason)


def _reason(response: Any) -> str | None:
    reason: str | None = response.incomplete_details and response.incomplete_details.reason
    return reason


def _say_incomplete(item: Any) -> None:
    if getattr(item, "status", None) is not None:
        item.status = "incomplete"


def _in_messages(handler: Any) -> None:
    """
    Answer with an error that asks to try again.

    Of Anthropic's stop reasons none is true, and their clients take an absent or an unknown one for the end of a turn; after
    `pause_turn` they would ask a server to go on that is stopping.
    """
    convert, convert_stream = handler.messages_full_converter, handler.message_stream_converter

    def converted(answer: Any) -> Any:
        if answer.choices[0].finish_reason == ABORT:
            return create_error_response(MESSAGE, OVERLOADED, HTTPStatus.SERVICE_UNAVAILABLE)
        return convert(answer)

    async def converted_stream(chunks: AsyncIterator[Any]) -> AsyncIterator[str]:
        is_aborted = False

        async def watched() -> AsyncIterator[Any]:
            nonlocal is_aborted
            async for chunk in chunks:
                is_aborted |= ABORT in finish_reasons(chunk)
                yield chunk

        async for event in convert_stream(watched()):
            # in its place, because it would give the stop reason, and `message_stop`, which says success, comes behind it
            if is_aborted and event.startswith("event: message_delta\n"):
                error = written({"message": MESSAGE}, HTTPStatus.SERVICE_UNAVAILABLE, ANTHROPIC_PATH)
                yield f"event: error\ndata: {json.dumps(error)}\n\n"
                return
            yield event

    handler.messages_full_converter, handler.message_stream_converter = converted, converted_stream
