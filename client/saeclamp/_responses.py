"""
Answers of the server. Fields that are not named here are kept as attributes and in `model_extra`.

`text` is the first choice's text, empty where there is none.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import Field

from saeclamp.types import Answer, ChoiceReadout, Receipt
from saeclamp.types.rows import Listing


class Usage(Answer):
    """Counts of tokens."""

    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    total_tokens: int = 0
    prompt_tokens_details: dict[str, Any] | None = None


class FunctionCall(Answer):
    """A function and its arguments, as JSON text. In a stream, a piece of it."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(Answer):
    """A call the model wants made. In a stream `index` tells which call a piece belongs to."""

    id: str | None = None
    type: str | None = None
    index: int | None = None
    function: FunctionCall | None = None


class ChatMessage(Answer):
    """A message of the model. May be put into the next request's `messages` as it is."""

    role: str
    content: str | None = None
    tool_calls: list[ToolCall] | None = None


class TopLogprob(Answer):
    """A candidate token; natural logarithm."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(TopLogprob):
    """The token that was chosen, and the best candidates."""

    top_logprobs: list[TopLogprob] = Field(default_factory=list)


class ChatLogprobs(Answer):
    """One entry a token."""

    content: list[TokenLogprob] | None = None


class TextLogprobs(Answer):
    """Parallel lists, one entry a token."""

    text_offset: list[int] = Field(default_factory=list)
    token_logprobs: list[float | None] = Field(default_factory=list)
    tokens: list[str] = Field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] | None = None


class ChatChoice(Answer):
    """One of the `n` answers."""

    index: int
    message: ChatMessage
    finish_reason: str | None = None
    logprobs: ChatLogprobs | None = None
    steering: ChoiceReadout = Field(default_factory=ChoiceReadout)
    """The readout; empty where the request had none."""


class TextChoice(Answer):
    """One of the `n` continuations."""

    index: int
    text: str
    finish_reason: str | None = None
    logprobs: TextLogprobs | None = None
    steering: ChoiceReadout = Field(default_factory=ChoiceReadout)
    """The readout; empty where the request had none."""


class ChatDelta(Answer):
    """The piece that a chunk adds to a message."""

    role: str | None = None
    content: str | None = None
    tool_calls: list[ToolCall] | None = None


class ChatChunkChoice(Answer):
    """The piece that a chunk adds to one answer."""

    index: int
    delta: ChatDelta
    finish_reason: str | None = None
    logprobs: ChatLogprobs | None = None
    steering: ChoiceReadout = Field(default_factory=ChoiceReadout)
    """The readout; empty where the request had none."""


class _Generation(Answer):
    id: str
    object: str
    created: int
    model: str
    usage: Usage | None = None
    steering: Receipt | None = None
    """The receipt, where the request or the variant that it names steers. In a stream it rides in the last chunk."""

    @property
    def text(self) -> str:
        raise NotImplementedError


class ChatCompletion(_Generation):
    """Answer of `POST /v1/chat/completions`."""

    choices: list[ChatChoice]

    @property
    def text(self) -> str:
        """The first choice's text."""
        return "".join(choice.message.content or "" for choice in self.choices if choice.index == 0)


class SteeredChatCompletion(ChatCompletion):
    """The same to a request that asked for steering. No receipt, no answer: `NotSteeredError` is raised then."""

    steering: Receipt
    """The receipt: what was done."""


class ChatCompletionChunk(_Generation):
    """A piece of a streamed chat completion. A chunk that only carries usage has no choices."""

    choices: list[ChatChunkChoice]

    @property
    def text(self) -> str:
        """The piece that this chunk adds to the first choice's text."""
        return "".join(choice.delta.content or "" for choice in self.choices if choice.index == 0)


class Completion(_Generation):
    """Answer of `POST /v1/completions`, and a piece of a streamed one."""

    choices: list[TextChoice]

    @property
    def text(self) -> str:
        """The first choice's text, or what this chunk adds to it."""
        return "".join(choice.text for choice in self.choices if choice.index == 0)


class SteeredCompletion(Completion):
    """The same to a request that asked for steering. No receipt, no answer: `NotSteeredError` is raised then."""

    steering: Receipt
    """The receipt: what was done."""


class Model(Answer):
    """A model name the server accepts: the base model, or a variant of it."""

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = ""
    root: str | None = None
    parent: str | None = None
    """The model this one is a variant of; None for the base model."""


class ModelList(Listing[Model], Answer):  # type: ignore[misc]  # BaseModel's iterator is of fields
    """Answer of `GET /v1/models`."""

    data: list[Model]

    @property
    def ids(self) -> list[str]:
        """Names that may be passed as `model`."""
        return [model.id for model in self.data]


AnswerT = TypeVar("AnswerT", bound=Answer)
ResponseT = TypeVar("ResponseT", bound=_Generation)
ChunkT = TypeVar("ChunkT", bound=_Generation)
