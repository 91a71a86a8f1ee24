"""Messages are found in the prompt whatever the chat template does with them, or the request is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from saeclamp_server.errors import RequestError
from saeclamp_server.steering.chat_spans import MAX_LOCATED, Message, find_message_spans

Template = Callable[[Sequence[Message]], str]


def plain(messages: Sequence[Message]) -> str:
    return "".join(f"<{message['role']}>{message['content']}</>" for message in messages) + "<assistant>"


def with_a_default_system_prompt(messages: Sequence[Message]) -> str:
    first = "" if messages[0]["role"] == "system" else "<system>a user is here</>"
    return first + plain(messages)


def trimming(messages: Sequence[Message]) -> str:
    return plain([{**message, "content": message["content"].strip()} for message in messages])


def found(messages: list[Message], roles: set[str], template: Template = plain) -> list[tuple[str, str]]:
    """A letter is a token."""

    async def render(messages: Sequence[Message]) -> Sequence[int]:
        return [ord(letter) for letter in template(messages)]

    conversation = asyncio.run(find_message_spans(messages, roles, render))
    text = template(messages)
    assert conversation.prompt_len == len(text)
    return [(role, text[start:end]) for role, start, end in conversation.spans]


def chat(*said: tuple[str, str]) -> list[Message]:
    return [{"role": role, "content": content} for role, content in said]


@pytest.mark.parametrize("template", [plain, with_a_default_system_prompt, trimming])
def test_what_messages_of_a_role_say_is_found_and_nothing_of_the_template(template: Template) -> None:
    messages = chat(
        ("user", "a"), ("assistant", "user"), ("user", "a user is here"), ("assistant", "</>"), ("user", "☃")
    )
    assert found(messages, {"user"}, template) == [("user", "a"), ("user", "a user is here"), ("user", "☃")]
    assert found(messages, {"assistant"}, template) == [("assistant", "user"), ("assistant", "</>")]
    assert len(found(messages, {"user", "assistant"}, template)) == 5
    assert found(messages, {"tool"}, template) == []


@pytest.mark.parametrize("content", ["☃ 7", "Zq!", "☃", "7", "Z", "!", "☃!", "Z7", "☃ 7☃ 7", "Zq!Zq!"])
def test_a_message_like_a_placeholder_is_found_whole(content: str) -> None:
    assert found(chat(("user", content)), {"user"}) == [("user", content)]


def test_what_the_template_cuts_off_is_not_looked_for() -> None:
    assert found(chat(("user", "  hello \n")), {"user"}, trimming) == [("user", "hello")]
    assert found(chat(("user", " \n")), {"user"}, trimming) == []


def test_parts_are_found_as_one_and_messages_without_text_not_at_all() -> None:
    def joining(messages: Sequence[Message]) -> str:
        texts = [
            message["content"]
            if isinstance(message["content"], str)
            else "\n".join(part["text"] for part in message["content"] or [])
            for message in messages
        ]
        return plain([{**message, "content": text} for message, text in zip(messages, texts, strict=True)])

    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages: list[Message] = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "assistant", "content": ""},
    ]
    assert found(messages, {"user", "assistant"}, joining) == [("user", "one\ntwo")]


def test_messages_that_the_template_mixes_are_refused() -> None:
    def shuffling(messages: Sequence[Message]) -> str:
        return "".join(
            letter for pair in zip(*(message["content"] for message in messages), strict=False) for letter in pair
        )

    with pytest.raises(RequestError) as raised:
        found(chat(("user", "abc"), ("user", "xyz")), {"user"}, shuffling)
    assert raised.value.param == "messages[1]"


def test_a_message_that_is_shown_twice_takes_what_is_between_with_it_or_is_refused() -> None:
    def quoting(messages: Sequence[Message]) -> str:
        return plain(messages) + messages[0]["content"]

    with pytest.raises(RequestError):
        found(chat(("user", "one"), ("user", "two")), {"user"}, quoting)


def test_too_many_messages_are_refused_before_any_is_rendered() -> None:
    async def render(_: Sequence[Message]) -> Sequence[int]:
        raise AssertionError

    with pytest.raises(RequestError, match=str(MAX_LOCATED)):
        asyncio.run(find_message_spans(chat(*[("user", "hi")] * (MAX_LOCATED + 1)), {"user"}, render))
