"""
Spans of a chat's messages in its prompt.

Chat templates are programs, so a message's span is not guessed but tried: the chat is rendered once more with a placeholder
as the message's content, and the tokens that then differ are the message.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from saeclamp_server.errors import InvalidSteeringError

PLACEHOLDERS = ("☃ 7", "Zq!")
"""
Contents that are put in a message's place. Two, which begin and end with different tokens: one alone may share its first or
its last token with the message, which would then seem to be shorter than it is.
"""
MAX_LOCATED = 256
"""Messages that are located in one request, at most; each costs two renderings."""

Message: TypeAlias = Mapping[str, Any]
Render: TypeAlias = Callable[[Sequence[Message]], Awaitable[Sequence[int]]]
"""Function from messages to the prompt's token ids."""


@dataclass(frozen=True)
class ChatSpans:
    """A chat's prompt, with the spans of its messages."""

    prompt_len: int
    spans: Sequence[tuple[str, int, int]]
    """(role, first position, position after the last one) of the messages' contents; ascending, without overlap."""


async def find_message_spans(messages: Sequence[Message], roles: Collection[str], render: Render) -> ChatSpans:
    """
    Find the spans of the messages of some roles. Messages without text, such as bare tool calls, are left out.

    Raises InvalidSteeringError where a message cannot be told from the template's text around it.
    """
    chosen = [number for number, message in enumerate(messages) if message.get("role") in roles and _says(message)]
    if len(chosen) > MAX_LOCATED:
        raise InvalidSteeringError(
            f"{len(chosen)} messages have these roles; at most {MAX_LOCATED} can be steered by role.", "messages"
        )
    prompt = await render(messages)
    spans: list[tuple[str, int, int]] = []
    for number in chosen:
        start, end = await _span(messages, number, prompt, render)
        if start == end:  # the template leaves it out
            continue
        # out of order or overlapping: the template reorders or repeats messages
        if spans and start < spans[-1][2]:
            raise _cannot_tell(number)
        spans.append((str(messages[number]["role"]), start, end))
    return ChatSpans(len(prompt), spans)


async def _span(messages: Sequence[Message], number: int, prompt: Sequence[int], render: Render) -> tuple[int, int]:
    before, after = len(prompt), len(prompt)
    for placeholder in PLACEHOLDERS:
        changed = [*messages]
        changed[number] = {**messages[number], "content": placeholder}
        other = await render(changed)
        before = min(before, _num_equal(prompt, other))
        after = min(after, _num_equal(prompt[::-1], other[::-1]))
    start, end = before, len(prompt) - after
    if start > end:
        raise _cannot_tell(number)
    return start, end


def _num_equal(one: Sequence[int], other: Sequence[int]) -> int:
    """Count the equal tokens at the beginning of both."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((count for count, (a, b) in pairs if a != b), min(len(one), len(other)))


def _says(message: Message) -> bool:
    content = message.get("content")
    if isinstance(content, str):
        return bool(content)
    return isinstance(content, list) and any(
        isinstance(part, str) or (isinstance(part, Mapping) and part.get("text")) for part in content
    )


def _cannot_tell(number: int) -> InvalidSteeringError:
    return InvalidSteeringError(
        "The chat template does not show this message in one piece, so it cannot be steered by role.",
        f"messages[{number}]",
    )
