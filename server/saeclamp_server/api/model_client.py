"""The model as our own endpoints use it: prompts in, activations and likelihoods out. Free of vLLM."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from saeclamp.types import Receipt
from saeclamp_saes.concurrency import gather_first_error
from saeclamp_server.api.likelihoods import Likelihoods
from saeclamp_server.steering import ResolvedSteering
from saeclamp_server.steering.chat_spans import Message


@dataclass(frozen=True)
class Prompt:
    """A text or a conversation, as the model reads it."""

    ids: tuple[int, ...]
    spans: tuple[tuple[str, int, int], ...] | None = None
    """Role, first position and position after the last one of what each message of a conversation says. None: a text."""

    def roles(self) -> list[str | None]:
        """Return the role of each token's message; None where it is the template's, and everywhere in a text."""
        found: list[str | None] = [None] * len(self.ids)
        for role, start, end in self.spans or ():
            found[start:end] = [role] * (end - start)
        return found

    def is_template(self) -> list[bool]:
        """Tell which tokens the chat template has added."""
        return [self.spans is not None and role is None for role in self.roles()]


class TokenActivations(NamedTuple):
    """Activations and edits at one token, as in `step_report.ReadoutChunk`."""

    acts: list[float | None]
    """Activations of the readout's named features, in their order; None: it is a special token."""
    top: dict[str, Sequence[Sequence[Any]] | None]
    """(index, activation) of each SAE's strongest features, strongest first."""
    edits: list[Sequence[Any]]

    @property
    def is_empty(self) -> bool:
        """True if there is nothing to show: it is a special token, and was not edited."""
        return not self.edits and all(read is None for read in (*self.acts, *self.top.values()))


class PromptRecording(NamedTuple):
    """An order to record a prompt's residual stream in the engine."""

    key: str
    """Key by which the recording is fetched."""
    site: str
    tokens: str
    """`last` or `all`"""


@dataclass(frozen=True)
class GenerateRequest:
    """One sequence that the engine is to run. Generates greedily unless told otherwise."""

    ids: tuple[int, ...]
    steering: ResolvedSteering | None = None
    max_tokens: int = 1
    sampling: Mapping[str, Any] | None = None
    """Fields of vLLM's sampling parameters, such as `temperature` and `seed`."""
    logprobs_of: tuple[int, ...] = ()
    """Tokens whose logprobs are wanted at the first generated position."""
    prompt_logprobs: int | None = None
    """
    Number of likeliest tokens whose logprobs are wanted at each prompt position, beside the prompt's own token; None: not
    even that. With them, what is generated has no text.
    """
    logprobs: int | None = None
    """The same as `prompt_logprobs`, at each generated position."""
    recording: PromptRecording | None = None
    """Recording of the prompt; of unsteered runs alone."""

    @property
    def num_cells(self) -> int:
        """Count the numbers that the engine may say of it, each with its token's or feature's id."""
        program = self.steering.program if self.steering else None
        readout = program.readout if program else None
        read = len(readout.features) + readout.top_k * len(readout.saes) if readout else 0
        cells = len(self.ids) * read if readout else 0
        cells += 0 if self.prompt_logprobs is None else len(self.ids) * (1 + self.prompt_logprobs)
        return cells + (0 if self.logprobs is None else self.max_tokens * (1 + self.logprobs))


@dataclass(frozen=True)
class GenerateResult:
    """A sequence that the engine has run."""

    ids: tuple[int, ...]
    """Generated tokens."""
    text: str
    finish_reason: str | None
    readings: Mapping[int, TokenActivations]
    """Activations and edits by position."""
    logprobs: Likelihoods
    """Logprobs at each generated position; empty where none were wanted."""
    prompt_logprobs: Likelihoods
    """Logprobs at each prompt position, given the tokens before it."""
    receipt: Receipt | None


class ModelClient(Protocol):
    """The served model, as our own endpoints use it."""

    name: str
    """Name of the base model."""

    async def from_text(self, text: str, path: str) -> Prompt:
        """Tokenise a text. Raises RequestError, which names `path`."""
        ...

    async def from_messages(self, messages: Sequence[Message], path: str, answers: bool = False) -> Prompt:
        """
        Render a conversation.

        answers: whether an answer is to follow
        Raises RequestError, which names `path`.
        """
        ...

    num_tokens: int
    """Tokens in its vocabulary."""

    def token_ids(self, text: str) -> list[int]:
        """Tokenise a piece of text as it stands, with nothing before or after it."""
        ...

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each token."""
        ...

    def token_bytes(self, ids: Sequence[int]) -> list[tuple[int, ...] | None]:
        """Return the bytes of each token that is a part of a character; None for others."""
        ...

    async def run(self, run: GenerateRequest, path: str, heard: Callable[[int], None] | None = None) -> GenerateResult:
        """
        Run one sequence, in the engine's batch. Cancelled, it ends in the engine too.

        heard: is told how many tokens have been generated
        Raises RequestError, which names `path` where the prompt is too long.
        """
        ...


class DecoderQueries(Protocol):
    """Questions about decoder rows that the engine answers."""

    async def nearest(self, sae: str, indices: Sequence[int], count: int) -> list[list[tuple[int, float]]]:
        """Find, of each feature, the `count` others whose decoder rows point the same way: index and cosine."""
        ...

    async def alignment(self, sae: str, indices: Sequence[int], token_ids: Sequence[int]) -> list[list[float]] | None:
        """
        Find what each feature's decoder row adds to some tokens' logits by the direct path, up to a common factor.

        None where that is not known of this model or SAE.
        """
        ...


async def tokenize_request(
    model: ModelClient, text: str | None, messages: Sequence[Message] | None, answers: bool = False
) -> tuple[Prompt, str]:
    """Tokenise a request's `text` or `messages`, and say which of them it was. Raises RequestError."""
    if text is not None:
        return await model.from_text(text, "text"), "text"
    return await model.from_messages(messages or (), "messages", answers), "messages"


async def generate_all(model: ModelClient, runs: Sequence[tuple[GenerateRequest, str]]) -> list[GenerateResult]:
    """Run sequences in one batch, as far as the engine has room. The first error ends all of them."""
    return await gather_first_error(model.run(run, path) for run, path in runs)


async def score_answers(
    model: ModelClient, answers: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], path: str, num_likely: int = 0
) -> list[Likelihoods]:
    """
    Find what the unsteered model expects at each token of answers: logprobs of the token itself and of the likeliest ones.

    answers: (prompt's ids, answer's ids)
    Raises RequestError, which names `path`.
    """

    async def of(prompt: tuple[int, ...], ids: tuple[int, ...]) -> Likelihoods:
        if not ids:
            return Likelihoods()
        outcome = await model.run(GenerateRequest((*prompt, *ids), prompt_logprobs=num_likely), path)
        return outcome.prompt_logprobs.behind(len(prompt))

    return await gather_first_error(of(prompt, ids) for prompt, ids in answers)
