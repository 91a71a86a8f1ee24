"""
What the server answers. Fields that are not named here are kept as attributes and in `model_extra`.

`text` is the first choice's text, empty where there is none.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, PrivateAttr

from saeclamp.types import ChoiceReadout, Receipt, StoredFeature, StoredSAE, StoredVector


class _Answer(BaseModel):
    model_config = ConfigDict(extra="allow")


class _Identified(_Answer):
    _request_id: str | None = PrivateAttr(default=None)

    @property
    def request_id(self) -> str | None:
        """The `x-request-id` of the HTTP response, to quote when reporting a problem."""
        return self._request_id


class Usage(_Answer):
    """Counts of tokens."""

    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    total_tokens: int = 0
    prompt_tokens_details: dict[str, Any] | None = None


class FunctionCall(_Answer):
    """A function and its arguments, as JSON text. In a stream, a piece of it."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(_Answer):
    """A call the model wants made. In a stream `index` tells which call a piece belongs to."""

    id: str | None = None
    type: str | None = None
    index: int | None = None
    function: FunctionCall | None = None


class ChatMessage(_Answer):
    """What the model said. May be put into the next request's `messages` as it is."""

    role: str
    content: str | None = None
    tool_calls: list[ToolCall] | None = None


class TopLogprob(_Answer):
    """A candidate token; natural logarithm."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(TopLogprob):
    """The token that was chosen, and the best candidates."""

    top_logprobs: list[TopLogprob] = []


class ChatLogprobs(_Answer):
    """One entry a token."""

    content: list[TokenLogprob] | None = None


class TextLogprobs(_Answer):
    """Parallel lists, one entry a token."""

    text_offset: list[int] = []
    token_logprobs: list[float | None] = []
    tokens: list[str] = []
    top_logprobs: list[dict[str, float] | None] | None = None


class ChatChoice(_Answer):
    """One of the `n` answers."""

    index: int
    message: ChatMessage
    finish_reason: str | None = None
    logprobs: ChatLogprobs | None = None
    steering: ChoiceReadout | None = None
    """What was read, where the request had a readout."""


class TextChoice(_Answer):
    """One of the `n` continuations."""

    index: int
    text: str
    finish_reason: str | None = None
    logprobs: TextLogprobs | None = None
    steering: ChoiceReadout | None = None
    """What was read, where the request had a readout."""


class ChatDelta(_Answer):
    """What a chunk adds to a message."""

    role: str | None = None
    content: str | None = None
    tool_calls: list[ToolCall] | None = None


class ChatChunkChoice(_Answer):
    """What a chunk adds to one answer."""

    index: int
    delta: ChatDelta
    finish_reason: str | None = None
    logprobs: ChatLogprobs | None = None
    steering: ChoiceReadout | None = None
    """What was read, where the request had a readout."""


class _Generation(_Identified):
    id: str
    object: str
    created: int
    model: str
    usage: Usage | None = None
    steering: Receipt | None = None
    """The receipt. In a stream it rides in the last chunk."""

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


class ChatCompletionChunk(_Generation):
    """A piece of a streamed chat completion. A chunk that only carries usage has no choices."""

    choices: list[ChatChunkChoice]

    @property
    def text(self) -> str:
        """What this chunk adds to the first choice's text."""
        return "".join(choice.delta.content or "" for choice in self.choices if choice.index == 0)


class Completion(_Generation):
    """Answer of `POST /v1/completions`, and a piece of a streamed one."""

    choices: list[TextChoice]

    @property
    def text(self) -> str:
        """The first choice's text, or what this chunk adds to it."""
        return "".join(choice.text for choice in self.choices if choice.index == 0)


class Model(_Answer):
    """A model name the server accepts: the base model, or a variant of it."""

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = ""
    root: str | None = None
    parent: str | None = None
    """The model this one is a variant of; None for the base model."""


class ModelList(_Identified):
    """Answer of `GET /v1/models`."""

    data: list[Model]

    @property
    def ids(self) -> list[str]:
        """What may be passed as `model`."""
        return [model.id for model in self.data]


class SAE(_Identified, StoredSAE):
    """Answer of `GET /v1/saes/NAME`."""


class SAEList(_Identified):
    """Answer of `GET /v1/saes`."""

    data: list[StoredSAE]

    @property
    def names(self) -> list[str]:
        """What features are named after."""
        return [sae.name for sae in self.data]


class Feature(_Identified, StoredFeature):
    """Answer of `GET /v1/features/SAE/FEATURE`."""


class Vector(_Identified, StoredVector):
    """Answer of `POST /v1/vectors?name=NAME` and `GET /v1/vectors/NAME`."""


class VectorList(_Identified):
    """Answer of `GET /v1/vectors`."""

    data: list[StoredVector]
    sites: list[str] = []
    """Where vectors can sit."""
    max_vectors: int | None = None
    """How many each site can hold."""

    @property
    def names(self) -> list[str]:
        """What may be passed as `vector`."""
        return [vector.name for vector in self.data]


class DeletedVector(_Identified):
    """Answer of `DELETE /v1/vectors/NAME`."""

    name: str
    deleted: bool


AnswerT = TypeVar("AnswerT", bound=_Identified)
ResponseT = TypeVar("ResponseT", bound=_Generation)
ChunkT = TypeVar("ChunkT", bound=_Generation)
