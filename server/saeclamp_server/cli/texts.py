"""Texts and conversations on a command line: as words, as options in order, from files or from the standard input."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, TypeAlias

from saeclamp_server.cli.server_client import CommandError

STANDARD_INPUT = "-"
ROLES = ("system", "user", "assistant")

Passage: TypeAlias = str | list[dict[str, Any]]
"""A text, or the messages of a conversation."""


class _Say(argparse.Action):
    """Adds a message to the conversation: options keep the order in which they are typed."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        said = getattr(namespace, self.dest) or []
        setattr(namespace, self.dest, [*said, {"role": self.const, "content": values}])


def add_passage(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the ways to give a text or a conversation. `what` the text is begins with a small letter."""
    parser.add_argument("text", nargs="?", help=f"{what}; - reads it from the standard input")
    add_conversation(parser)


def add_conversation(parser: argparse.ArgumentParser) -> None:
    """Add the ways to give a conversation."""
    for role in ROLES:
        parser.add_argument(
            f"--{role}",
            action=_Say,
            const=role,
            dest="said",
            metavar="TEXT",
            help=f"a message of the role {role}; these options make a conversation, in the order in which they are given",
        )
    parser.add_argument(
        "--messages", metavar="FILE", help="a conversation as JSON, as in a chat completion; - reads the standard input"
    )


def read_passage_flags(args: argparse.Namespace) -> Passage:
    """Read the text or the conversation. Raises CommandError where there is none, or more than one."""
    conversation = read_conversation_flags(args)
    if (args.text is None) == (conversation is None):
        raise CommandError("Give one text, or a conversation: with --user and its like, or --messages.")
    if conversation is not None:
        return conversation
    return read_text(STANDARD_INPUT) if args.text == STANDARD_INPUT else str(args.text)


def read_conversation_flags(args: argparse.Namespace) -> list[dict[str, Any]] | None:
    """Read the conversation; None where none is given. Raises CommandError."""
    if args.messages is None:
        return args.said or None
    if args.said:
        raise CommandError("Give --messages, or --user and its like, not both.")
    return _messages(read_json(args.messages), args.messages)


def read_text(file: str) -> str:
    """Read a file, or the standard input for `-`. Raises CommandError."""
    try:
        if file == STANDARD_INPUT:
            return sys.stdin.buffer.read().decode()
        return Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as exc:
        raise CommandError(f"{_called(file)} cannot be read: {exc}.") from exc


def read_bytes(file: str) -> bytes:
    """Read a file as it is, or the standard input for `-`. Raises CommandError."""
    try:
        return sys.stdin.buffer.read() if file == STANDARD_INPUT else Path(file).read_bytes()
    except (OSError, ValueError) as exc:
        raise CommandError(f"{_called(file)} cannot be read: {exc}.") from exc


def read_json(file: str) -> Any:
    """Read a file of JSON, or the standard input for `-`. Raises CommandError."""
    text = read_text(file)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise CommandError(f"{_called(file)} cannot be read as JSON: {exc}.") from exc


def read_passages(file: str) -> list[Passage]:
    """Read one text a line; of a file that ends in `.jsonl` one JSON string or conversation a line. Raises CommandError."""
    lines = [line.strip() for line in read_text(file).splitlines()]
    lines = [line for line in lines if line]
    if not lines:
        raise CommandError(f"{_called(file)} has no text.")
    if not file.endswith(".jsonl"):
        return [*lines]
    passages: list[Passage] = []
    for number, line in enumerate(lines, 1):
        where = f"{file}, text {number},"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as exc:
            raise CommandError(f"{where} cannot be read as JSON: {exc}.") from exc
        value = value.get("text", value) if isinstance(value, dict) else value
        passages.append(value if isinstance(value, str) else _messages(value, where))
    return passages


def _messages(value: Any, where: str) -> list[dict[str, Any]]:
    value = value.get("messages") if isinstance(value, dict) else value
    if not isinstance(value, list) or not value or not all(isinstance(one, dict) for one in value):
        raise CommandError(
            f'{_called(where)} has no messages such as [{{"role": "user", "content": "Hello"}}] or {{"messages": [...]}}.'
        )
    return value


def _called(file: str) -> str:
    return "The standard input" if file == STANDARD_INPUT else file
