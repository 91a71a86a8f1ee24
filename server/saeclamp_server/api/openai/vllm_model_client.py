"""`model_client.ModelClient` on vLLM's engine: the same admission, batch and receipts as for completions."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from pydantic import ValidationError
from vllm import SamplingParams
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.exceptions import VLLMClientError

from saeclamp_server.api.likelihoods import Likelihoods
from saeclamp_server.api.model_client import GenerateRequest, GenerateResult, Prompt
from saeclamp_server.api.openai.steered_call import SteeredCall
from saeclamp_server.api.openai.token_bytes import bytes_of
from saeclamp_server.api.state import CallServices
from saeclamp_server.errors import InvalidRequestError, RequestError
from saeclamp_server.steering.chat_spans import Message, find_message_spans
from saeclamp_server.steering.program import ABORTED, RECORD_KEY
from saeclamp_server.threads import run_computation

MAX_TEXTS = 2**16
"""Tokens whose texts are kept: decoding one takes longer than reading what is active at it."""

REFUSED = (VLLMClientError, ValueError)
"""Exceptions by which vLLM refuses what it cannot do; some are older than its own error classes."""


class VLLMModelClient:
    """The base model of a server."""

    def __init__(self, vllm: Any, calls: CallServices) -> None:
        """vllm: vLLM's state of the app"""
        self._calls = calls
        self._engine = vllm.engine_client
        self.name = calls.model_name
        self._renderer = vllm.online_renderer
        self._tokenizer = self._engine.get_tokenizer()
        self.text_of: Callable[[int], str] = lru_cache(MAX_TEXTS)(lambda token: self._tokenizer.decode([token]))
        """The text of a token; bytes that are no whole letter show as U+FFFD."""
        self.bytes_of: Callable[[int], tuple[int, ...] | None] = lru_cache(MAX_TEXTS)(
            lambda token: bytes_of(self._tokenizer, token) if "\ufffd" in self.text_of(token) else None
        )
        """The bytes of a token that is a part of a character."""
        self.num_tokens: int = self._engine.model_config.get_vocab_size()

    async def from_text(self, text: str, path: str) -> Prompt:
        """Tokenise a text as `/v1/completions` does. Raises RequestError."""
        try:
            rendered = await self._renderer.render_completion(CompletionRequest(model=self.name, prompt=text))
        except REFUSED as exc:
            raise InvalidRequestError(f"{path}: {_said(exc)}", path) from exc
        return Prompt(_ids(rendered, path))

    async def from_messages(self, messages: Sequence[Message], path: str, answers: bool = False) -> Prompt:
        """Render a conversation as `/v1/chat/completions` does, and find its messages in it. Raises RequestError."""

        async def render(messages: Sequence[Message]) -> Sequence[int]:
            body = {"model": self.name, "messages": messages, "add_generation_prompt": answers}
            try:
                rendered = await self._renderer.render_chat(ChatCompletionRequest.model_validate(body))
            except REFUSED as exc:
                raise InvalidRequestError(f"{path}: the chat cannot be rendered: {_said(exc)}", path) from exc
            return _ids(rendered if isinstance(rendered, ErrorResponse) else rendered[1], path)

        roles = {str(message.get("role")) for message in messages}
        try:
            found = await find_message_spans(messages, roles, render)
        except RequestError as exc:
            exc.param = path if exc.param is None or not exc.param.startswith("messages") else _joined(path, exc.param)
            raise
        return Prompt(tuple(await render(messages)), tuple(found.spans))

    def token_ids(self, text: str) -> list[int]:
        """Tokenise a piece of text as it stands."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each token."""
        return [*map(self.text_of, ids)]

    def token_bytes(self, ids: Sequence[int]) -> list[tuple[int, ...] | None]:
        """Return the bytes of each token that is a part of a character; None for others."""
        return [*map(self.bytes_of, ids)]

    async def run(self, run: GenerateRequest, path: str, heard: Callable[[int], None] | None = None) -> GenerateResult:
        """Run one sequence. Cancelled, it ends in the engine too. Raises RequestError."""
        if run.steering is None:
            return await self._generate(run, None, path, heard)
        call = await SteeredCall.begin_resolved(self._calls, run.steering, key=uuid.uuid4().hex, num_sequences=1)
        try:
            return await self._generate(run, call, path, heard)
        finally:
            call.end()

    async def _generate(
        self, run: GenerateRequest, call: SteeredCall | None, path: str, heard: Callable[[int], None] | None
    ) -> GenerateResult:
        prompt, request_id = {"prompt_token_ids": [*run.ids]}, f"own-{uuid.uuid4().hex}"
        try:
            async for output in self._engine.generate(prompt, _params(run, call), request_id):
                if heard is not None:
                    heard(len(output.outputs[0].token_ids))
        except REFUSED as exc:
            raise InvalidRequestError(f"{path}: {_said(exc)}", path) from exc
        except asyncio.CancelledError:
            # vLLM ends what it has begun itself, but not what was just being handed to the engine
            await self._engine.abort(request_id)
            raise
        (sequence,) = output.outputs
        prompt_logprobs = Likelihoods()
        if run.prompt_logprobs is not None:  # of a long prompt that takes a while
            prompt_logprobs = await run_computation(_likelihoods, output.prompt_logprobs)
        return GenerateResult(
            ids=tuple(sequence.token_ids),
            text=sequence.text,
            finish_reason="content_filter" if sequence.stop_reason == ABORTED else sequence.finish_reason,
            readings=call.sequences.sequence(call.key, 0).readings if call else {},
            logprobs=_likelihoods(sequence.logprobs),
            prompt_logprobs=prompt_logprobs,
            receipt=await call.receipt() if call else None,
        )


def _params(run: GenerateRequest, call: SteeredCall | None) -> SamplingParams:
    params = SamplingParams(
        **{"temperature": 0, **(run.sampling or {})},
        max_tokens=run.max_tokens,
        logprobs=run.logprobs,
        logprob_token_ids=[*run.logprobs_of] or None,
        prompt_logprobs=run.prompt_logprobs,
        flat_logprobs=True,
        # vLLM would write the text of every likely token of a prompt, on the event loop
        detokenize=run.prompt_logprobs is None,
    )
    if run.recording is not None:
        assert call is None, "what is recorded is not steered"
        params.extra_args = {RECORD_KEY: run.recording._asdict()}
        params.skip_reading_prefix_cache = True  # what is cached is not computed, and could not be recorded
    if call is not None:
        call.attach(params, 0)
    return params


def _said(exc: Exception) -> str:
    """Say what vLLM, or pydantic for it, finds wrong."""
    return str(exc.errors()[0]["msg"]) if isinstance(exc, ValidationError) else str(exc)


def _ids(rendered: Any, path: str) -> tuple[int, ...]:
    if isinstance(rendered, ErrorResponse):
        raise InvalidRequestError(f"{path}: {rendered.error.message}", path)
    (prompt,) = rendered
    return tuple(prompt["prompt_token_ids"])


def _joined(path: str, param: str) -> str:
    """Put a path within `messages` behind that of the conversation."""
    return f"{path}{param.removeprefix('messages')}"


def _likelihoods(rows: Iterable[Mapping[int, Any] | None] | None) -> Likelihoods:
    """Take over vLLM's logprobs, of which the first of a prompt's positions has none."""
    return Likelihoods(row and {token: found.logprob for token, found in row.items()} for row in rows or ())
