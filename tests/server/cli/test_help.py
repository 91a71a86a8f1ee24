"""What `--help` says of every option of every command."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest

from saeclamp.types.suggest import Suggest
from saeclamp_server.cli import args

EMPTY = (None, False, argparse.SUPPRESS, "", [], {}, ())


def parsers(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, inner in action.choices.items():
                yield from parsers(inner, f"{name} {word}".strip())


def commands(monkeypatch: pytest.MonkeyPatch) -> dict[str, argparse.ArgumentParser]:
    """Take the whole command line, as it is built for every call."""
    built = []

    def parse_args(parser: argparse.ArgumentParser, *_: object) -> argparse.Namespace:
        built.append(parser)
        return argparse.Namespace()

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    args.parse_args(["sae", "list"])
    return dict(parsers(built[0], ""))


def test_every_option_that_has_a_default_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = commands(monkeypatch)
    assert {"chat", "train", "features suggest", "labels explain"} <= set(found)
    silent = [
        (name, action.option_strings)
        for name, parser in found.items()
        for action in parser._actions
        if action.option_strings and action.default not in EMPTY and "default" not in (action.help or "")
    ]
    assert silent == []


def test_every_option_says_what_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = [
        (name, action.option_strings)
        for name, parser in commands(monkeypatch).items()
        for action in parser._actions
        if action.option_strings and not action.help
    ]
    assert silent == []


def test_what_suggest_is_told_by_default_is_what_the_server_would_take(monkeypatch: pytest.MonkeyPatch) -> None:
    suggest = commands(monkeypatch)["features suggest"]
    for option, field in (("candidates", "num_candidates"), ("max_tokens", "max_tokens"), ("seed", "seed")):
        assert suggest.get_default(option) == Suggest.model_fields[field].default
