"""Where the server is, and what becomes of its refusals."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from saeclamp_saes.errors import SAEError
from saeclamp_server.visible import visible_line

if TYPE_CHECKING:
    from saeclamp import Client

DEFAULT_URL = "http://127.0.0.1:8000"


class TerminalError(SAEError):
    """What was asked for cannot be done. One sentence for the user."""


def add_server(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every command has."""
    parser.add_argument("--url", default=DEFAULT_URL, help=f"where the server is (default {DEFAULT_URL})")
    parser.add_argument("--api-key", metavar="KEY", help="if the server wants one (default: $SAECLAMP_API_KEY)")


def add_command(
    commands: Any, name: str, what: str, ask: Callable[[argparse.Namespace, Client], int]
) -> argparse.ArgumentParser:
    """Add a command that asks the server. `what` it does begins with a small letter."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
    add_server(parser)
    parser.set_defaults(run=asking(ask))
    return parser


def asking(ask: Callable[[argparse.Namespace, Client], int]) -> Callable[[argparse.Namespace], int]:
    """Make a command's `run` of what it does with a client. Refusals become a TerminalError."""

    def run(args: argparse.Namespace) -> int:
        from saeclamp import Client  # here, because httpx imports half of a terminal, which `--help` can do without

        with refusals_told(args.url), Client(args.url, api_key=args.api_key) as client:
            return ask(args, client)

    return run


@contextmanager
def refusals_told(url: str) -> Iterator[None]:
    """Turn what the client raises into a TerminalError, a sentence."""
    from saeclamp import APIConnectionError, SaeclampError

    try:
        yield
    except APIConnectionError as exc:
        said = f"No server answers at {url}; start one with `saeclamp serve`. ({exc})"
        raise TerminalError(visible_line(said)) from exc
    except (SaeclampError, ValueError) as exc:
        raise TerminalError(visible_line(str(exc))) from exc
