"""
`/v1/chat/completions` and `/v1/completions`.

An unsteered request goes straight to vLLM's own handler. A steered one goes there too, carrying its program; when the
answer comes back, the engine's report decides whether it may leave.
"""

from __future__ import annotations

import uuid
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Collection, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response, StreamingResponse
from vllm.entrypoints.openai.chat_completion.api_router import create_chat_completion
from vllm.entrypoints.openai.completion.api_router import create_completion
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.api_utils import validate_json_request

from saeclamp.types import Steering
from saeclamp_server.api.error_envelope import path_of
from saeclamp_server.api.openai.protocol import SteeredChatCompletionRequest, SteeredCompletionRequest
from saeclamp_server.api.openai.receipt_headers import TraceEntry, headers_of
from saeclamp_server.api.openai.requested_model import RequestedModel
from saeclamp_server.api.openai.responder import complete_response, complete_stream
from saeclamp_server.api.openai.steered_call import SteeredCall
from saeclamp_server.api.state import state_of
from saeclamp_server.api.steering_body import parse_body, steering_of
from saeclamp_server.api.strictness.misplaced_steering import refuse_model_in_query
from saeclamp_server.api.strictness.stray_names import refuse_loaded_names
from saeclamp_server.errors import InvalidRequestError, InvalidSteeringError
from saeclamp_server.steering.chat_spans import ChatSpans, Message, find_message_spans
from saeclamp_server.vllm_compat import answer_to_somebody

router = APIRouter()

Handler = Callable[[Any, Request], Awaitable[Response]]


async def steering_in_body(raw_request: Request) -> Steering | None:
    """Read and check `steering` before vLLM's request class sees the body. Raises RequestError."""
    try:
        body = parse_body(await raw_request.body())
    except ValueError as exc:
        raise InvalidRequestError(f"The body is not JSON: {exc}.", None) from exc
    refuse_model_in_query(raw_request.scope["query_string"], body)
    steering = steering_of(body, path_of(raw_request.scope))
    await refuse_loaded_names(body, raw_request.scope)
    return steering


SteeringInBody = Annotated[Steering | None, Depends(steering_in_body)]


@router.post("/v1/chat/completions", dependencies=[Depends(validate_json_request)], response_model=None)
async def steered_chat_completion(
    request: SteeredChatCompletionRequest, raw_request: Request, steering: SteeringInBody
) -> Response | None:
    """Chat completion, as OpenAI's, with an optional `steering` object."""
    asked = await RequestedModel.find(state_of(raw_request.app), request.model, steering)
    roles = asked.roles(state_of(raw_request.app))
    conversation = await _located(request, raw_request, roles) if roles else None
    return await _answer(create_chat_completion, request, raw_request, asked, conversation)


@router.post("/v1/completions", dependencies=[Depends(validate_json_request)], response_model=None)
async def steered_completion(
    request: SteeredCompletionRequest, raw_request: Request, steering: SteeringInBody
) -> Response | None:
    """Text completion, as OpenAI's, with an optional `steering` object."""
    asked = await RequestedModel.find(state_of(raw_request.app), request.model, steering)
    return await _answer(create_completion, request, raw_request, asked)


async def _located(request: SteeredChatCompletionRequest, raw_request: Request, roles: Collection[str]) -> ChatSpans:
    """Find the messages of some roles in the prompt. Raises RequestError."""
    if request.truncate_prompt_tokens is not None:
        raise InvalidSteeringError("A truncated prompt cannot be steered by role.", "truncate_prompt_tokens")
    body = parse_body(await raw_request.body())
    renderer = state_of(raw_request.app).vllm.openai_serving_chat.online_renderer

    async def render(messages: Sequence[Message]) -> Sequence[int]:
        # from the body each time: reading a request's messages uses some of them up
        rendered = await renderer.render_chat(
            SteeredChatCompletionRequest.model_validate(body | {"messages": messages})
        )
        if isinstance(rendered, ErrorResponse):
            raise InvalidSteeringError(f"The chat cannot be rendered: {rendered.error.message}", "messages")
        (prompt,) = rendered[1]
        ids: Sequence[int] = prompt["prompt_token_ids"]
        return ids

    return await find_message_spans(body["messages"], roles, render)


async def _answer(
    handler: Handler,
    request: SteeredChatCompletionRequest | SteeredCompletionRequest,
    raw_request: Request,
    asked: RequestedModel,
    conversation: ChatSpans | None = None,
) -> Response | None:
    if not asked.steers:
        return await handler(request, raw_request)
    request.model = asked.base
    shows_token_ids = bool(request.return_token_ids)  # what the user wants: `carry` may set it for the readout's sake
    call = await SteeredCall.begin(
        state_of(raw_request.app),
        asked,
        conversation,
        key=uuid.uuid4().hex,
        num_sequences=request.num_sequences(),
        num_per_prompt=request.num_per_prompt,
        shows_token_ids=shows_token_ids,
        entry=TraceEntry(raw_request.url.path, raw_request.headers.get("x-request-id"), asked.name),
    )
    response: Response | None = None
    try:
        request.carry(call)
        response = answer_to_somebody(await handler(request, raw_request))
        if response is None:
            return response
        if response.status_code == 200:
            call.answers_as(_id_of(raw_request))
        if isinstance(response, StreamingResponse):
            response.headers.update(headers_of(call.spec))
            body = complete_stream(_as_text(response.body_iterator), call, request.empty_chunk(_id_of(raw_request)))
            weakref.finalize(body, call.end)  # a stream that is never read runs no `finally`
            response.body_iterator = body
            return response
        if response.status_code != 200:
            call.failed(f"HTTP {response.status_code}")
            return response
        return await complete_response(response, call)
    except Exception as exc:
        call.failed(str(exc))
        raise
    finally:
        if not isinstance(response, StreamingResponse):
            call.end()


def _id_of(raw_request: Request) -> str:
    """Look up the id that vLLM gave the answer."""
    answer_id: str = raw_request.state.request_metadata.request_id
    return answer_id


async def _as_text(chunks: AsyncIterable[Any]) -> AsyncIterator[str]:
    async for chunk in chunks:
        yield chunk if isinstance(chunk, str) else bytes(chunk).decode()
