"""vLLM's request classes plus `steering`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, Field, PrivateAttr, SkipValidation
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.sampling_params import SamplingParams

from saeclamp.types import Steering
from saeclamp_server.errors import InvalidSteeringError
from saeclamp_server.program import EXTRA_ARGS_KEY, SteeringProgram


class _Steered(BaseModel):
    # validated by request_body.steering_of, whose errors name the JSON path; here only for the API's own schema
    steering: SkipValidation[Steering | None] = Field(default=None)
    _payload: dict[str, Any] | None = PrivateAttr(default=None)

    if TYPE_CHECKING:  # fields of the vLLM class that this is mixed into
        use_beam_search: bool

    def carry(self, key: str, program: SteeringProgram) -> None:
        """Send `program` with this request, its report to be fetched by `key`. Raises RequestError."""
        self._refuse_what_cannot_be_steered()
        self._payload = {"key": key, "program": program.to_json()}

    def _refuse_what_cannot_be_steered(self) -> None:
        if self.use_beam_search:
            raise InvalidSteeringError(
                "Beam search cannot be steered: its sequences carry no program.", "use_beam_search"
            )
        if getattr(self, "prompt_embeds", None) is not None:
            raise InvalidSteeringError("A prompt of embeddings cannot be steered: it has no tokens.", "prompt_embeds")

    def to_sampling_params(self, *args: Any, **kwargs: Any) -> SamplingParams:
        params: SamplingParams = super().to_sampling_params(*args, **kwargs)  # type: ignore[misc]
        if self._payload is not None:
            params.extra_args = {**(params.extra_args or {}), EXTRA_ARGS_KEY: self._payload}
        return params


class SteeredChatCompletionRequest(_Steered, ChatCompletionRequest):
    """A chat completion request that may carry `steering`."""

    field_names: ClassVar[set[str] | None] = None  # vLLM caches the known keys per class

    def num_sequences(self) -> int:
        """How many sequences the engine runs for this request."""
        return int(self.n or 1)


class SteeredCompletionRequest(_Steered, CompletionRequest):
    """A text completion request that may carry `steering`."""

    field_names: ClassVar[set[str] | None] = None

    def num_sequences(self) -> int:
        """How many sequences the engine runs for this request."""
        prompt = self.prompt
        num_prompts = len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
        return num_prompts * int(self.n or 1)
