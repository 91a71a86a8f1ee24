"""The server that a command speaks to, and its refusals as sentences for the terminal."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from saeclamp_saes.errors import UserError
from saeclamp_saes.io.sanitize import escape_to_one_line
from saeclamp_server.cli.tables import terminal_width, wrap

if TYPE_CHECKING:
    from saeclamp import APIConnectionError, Client

DEFAULT_URL = "http://127.0.0.1:8000"  # as the client's, which is not imported for a help text: httpx takes long
KEY_VARIABLE = "SAECLAMP_API_KEY"


class CommandError(UserError):
    """A command cannot do what was asked for; the message is one sentence for the user."""


def add_server(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every command has, and say that no more than the client needs to be installed."""
    parser.add_argument(
        "--url",
        default=DEFAULT_URL,
        help=f"where the server is: a URL, HOST:PORT or PORT (default {DEFAULT_URL})",
    )
    parser.add_argument("--api-key", metavar="KEY", help=f"if the server wants one (default: ${KEY_VARIABLE})")
    parser.set_defaults(needs=())


def add_command(
    commands: Any, name: str, what: str, ask: Callable[[argparse.Namespace, Client], int]
) -> argparse.ArgumentParser:
    """Add a command that asks the server. `what` it does begins with a small letter."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
    add_server(parser)
    parser.set_defaults(run=with_client(ask))
    return parser


def with_client(ask: Callable[[argparse.Namespace, Client], int]) -> Callable[[argparse.Namespace], int]:
    """Make a command's `run` of what it does with a client. Refusals become a CommandError."""

    def run(args: argparse.Namespace) -> int:
        from saeclamp import Client  # here, because httpx imports half of a terminal, which `--help` can do without

        with report_refusals(args), Client(args.url, api_key=args.api_key) as client:
            return ask(args, client)

    return run


@contextmanager
def report_refusals(args: argparse.Namespace, start: str = "`saeclamp serve`") -> Iterator[None]:
    """
    Turn what the client raises into a CommandError, a sentence.

    args:  of which `add_server`'s tell where the server is, and whether a key is sent
    start: the command that starts one
    """
    from saeclamp import APIConnectionError, AuthenticationError, NotFoundError, SaeclampError

    try:
        yield
    except APIConnectionError as exc:
        raise CommandError(escape_to_one_line(f"{_unanswered(exc, args.url, start)} ({exc})")) from exc
    except AuthenticationError as exc:
        has_key = bool(args.api_key or os.environ.get(KEY_VARIABLE))
        wants = "wants another API key than it was given" if has_key else "wants its API key"
        said = f"The server at {args.url} {wants}: give --api-key KEY, or set {KEY_VARIABLE}."
        raise CommandError(escape_to_one_line(said)) from exc
    except CommandError:
        raise
    except (SaeclampError, ValueError) as exc:
        said = str(exc)
        if isinstance(exc, NotFoundError) and exc.param is None:  # ours name what is not there
            said = (
                f"Nothing at {args.url} knows of this: is it a saeclamp server, and is that all of its address? ({exc})"
            )
        raise CommandError(escape_to_one_line(said)) from exc


def _unanswered(exc: APIConnectionError, url: str, start: str) -> str:
    """Tell a server that is not there from one that breaks off, and from one that takes too long."""
    import httpx

    from saeclamp import APIConnectionLostError, APITimeoutError

    if isinstance(exc, APIConnectionLostError):
        return f"The connection to {url} was lost while the server was answering; does it still run?"
    if isinstance(exc.__cause__, httpx.ConnectError | httpx.ConnectTimeout):
        return f"No server answers at {url}; start one with {start}."
    if isinstance(exc, APITimeoutError):
        return f"The server at {url} did not answer in time."
    return f"What listens at {url} gave no answer: is it a saeclamp server, and does it still run?"


def warn(warnings: Iterable[str]) -> None:
    """Print warnings beside the output, so that they are seen when it goes into a file or a pipe."""
    for warning in warnings:
        line = f"warning: {escape_to_one_line(warning)}"
        lines = wrap(line, terminal_width()) if sys.stderr.isatty() else [line]
        print("\n".join(lines), file=sys.stderr, flush=True)


def confirmed(args: argparse.Namespace, question: str) -> bool:
    """Ask before what cannot be undone. Raises CommandError where there is nobody to ask, and no --yes."""
    if args.yes:
        return True
    if not sys.stdin.isatty():
        raise CommandError(f"{question} There is nobody to ask: say --yes.")
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def add_yes(parser: argparse.ArgumentParser) -> None:
    """Add the flag that answers `confirmed`."""
    parser.add_argument("--yes", "-y", action="store_true", help="do not ask")
