"""vLLM's request classes plus `steering`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, Field, PrivateAttr, SkipValidation
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.sampling_params import SamplingParams

from saeclamp.types import Steering
from saeclamp_server.api.openai.steered_call import SteeredCall
from saeclamp_server.errors import InvalidSteeringError
from saeclamp_server.steering.program import SteeringProgram


class SteeredRequestMixin(BaseModel):
    # validated by steering_body.steering_of, whose errors name the JSON path; here only for the API's own schema
    steering: SkipValidation[Steering | None] = Field(default=None)
    _call: SteeredCall | None = PrivateAttr(default=None)
    _num_prompts: int = PrivateAttr(default=0)

    if TYPE_CHECKING:  # fields of the vLLM class that this is mixed into
        use_beam_search: bool
        include_stop_str_in_output: bool
        return_token_ids: bool | None
        n: int | None

    @property
    def num_per_prompt(self) -> int:
        """Number of sequences that the engine runs for each prompt."""
        return int(self.n or 1)

    def carry(self, call: SteeredCall) -> None:
        """Have the call's program go with all that is asked of the engine. Raises RequestError."""
        program = call.resolved.program
        self._refuse_what_cannot_be_steered(program)
        self._call = call
        if program.has_token_output:
            if getattr(self, "echo", False) and not self.return_token_ids:
                raise InvalidSteeringError(
                    "With a readout or a receipt of tokens the prompt cannot be echoed as text: leave out 'echo', or set "
                    "'return_token_ids' to get both parts as tokens.",
                    "echo",
                )
            self.return_token_ids = True  # by which readings are put beside their tokens

    def _refuse_what_cannot_be_steered(self, program: SteeringProgram) -> None:
        if self.use_beam_search:
            raise InvalidSteeringError(
                "Beam search cannot be steered: its sequences carry no program.", "use_beam_search"
            )
        if getattr(self, "prompt_embeds", None) is not None:
            raise InvalidSteeringError("A prompt of embeddings cannot be steered: it has no tokens.", "prompt_embeds")
        if self.include_stop_str_in_output and program.can_abort:
            raise InvalidSteeringError(
                "What stops an answer is not read by the model, so no rule can see it; with a rule that aborts, it cannot "
                "be included in the output.",
                "include_stop_str_in_output",
            )

    def to_sampling_params(self, *args: Any, **kwargs: Any) -> SamplingParams:
        params: SamplingParams = super().to_sampling_params(*args, **kwargs)  # type: ignore[misc]
        if self._call is not None:
            self._call.attach(params, self._num_prompts)  # vLLM asks once for each prompt, in their order
            self._num_prompts += 1
        return params


def _chunk(kind: str, answer_id: str, model: str | None, choice: dict[str, Any]) -> dict[str, Any]:
    head = {"id": answer_id, "object": kind, "created": int(time.time()), "model": model}
    return head | {"choices": [choice | {"finish_reason": "content_filter"}]}


class SteeredChatCompletionRequest(SteeredRequestMixin, ChatCompletionRequest):
    """A chat completion request that may carry `steering`."""

    field_names: ClassVar[set[str] | None] = None  # vLLM caches the known keys per class

    def num_sequences(self) -> int:
        """Count the sequences that the engine runs for this request."""
        return self.num_per_prompt

    def empty_chunk(self, answer_id: str) -> Callable[[int], dict[str, Any]]:
        """Make the chunk of a choice that a rule ended before its first token."""
        return lambda index: _chunk(
            "chat.completion.chunk", answer_id, self.model, {"index": index, "delta": {}, "logprobs": None}
        )


class SteeredCompletionRequest(SteeredRequestMixin, CompletionRequest):
    """A text completion request that may carry `steering`."""

    field_names: ClassVar[set[str] | None] = None

    def num_sequences(self) -> int:
        """Count the sequences that the engine runs for this request."""
        prompt = self.prompt
        num_prompts = len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
        return num_prompts * self.num_per_prompt

    def empty_chunk(self, answer_id: str) -> Callable[[int], dict[str, Any]]:
        """Make the chunk of a choice that a rule ended before its first token."""
        return lambda index: _chunk(
            "text_completion", answer_id, self.model, {"index": index, "text": "", "logprobs": None}
        )
