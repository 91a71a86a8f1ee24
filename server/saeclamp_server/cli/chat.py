"""`saeclamp chat`: the same questions, answered unsteered, steered and prompted, in columns."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from saeclamp_saes.cli.arg_types import count_arg
from saeclamp_saes.io.sanitize import escape_control_chars, escape_to_one_line
from saeclamp_server.cli.chat_columns import ChatColumn, Dialogue
from saeclamp_server.cli.chat_commands import COMMANDS, NOT_STEERED, helped, run_chat_command
from saeclamp_server.cli.line_editing import editable_lines, is_typed, lines
from saeclamp_server.cli.server_client import CommandError, add_server, report_refusals, warn
from saeclamp_server.cli.steering_flags import add_steering, add_variant, done_by, steering_from_flags
from saeclamp_server.cli.tables import Repainted, side_by_side, terminal_width, wrap

if TYPE_CHECKING:
    from saeclamp.types import Steering

HELP_WIDTH = 80
PIPED = """Where lines come from a pipe or a file, models' answers alone go to the output. Beside it
every command but /quit says in a line what it has done, or what is wrong with it;
the lines below a wrong one are read all the same, and the status is 1 in the end."""
PER_SECOND = 8
"""Times a second that the columns are drawn while answers come in."""


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "chat",
        help="chat with a running server, unsteered and steered side by side",
        description="Chat with a running server in columns: unsteered, steered, and prompted. Ctrl-C stops an answer.",
        epilog=f"{helped(HELP_WIDTH)}\n\n{PIPED}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_server(parser)
    add_steering(parser)
    add_variant(parser)
    parser.add_argument("--prompted", metavar="TEXT", help="a third column, whose system message says this")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="X", help="default %(default)s")
    parser.add_argument("--repetition-penalty", type=float, default=1.1, metavar="X", help="default %(default)s")
    parser.add_argument(
        "--max-tokens", type=count_arg, default=200, metavar="N", help="of an answer (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="shared by the columns (default %(default)s)")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    with report_refusals(args), asyncio.Runner() as runner:
        dialogue = runner.run(_opened(args, steering_from_flags(args)))
        try:
            with editable_lines(COMMANDS):
                return _talk(dialogue, runner, args)
        finally:
            runner.run(dialogue.client.close())


async def _opened(args: argparse.Namespace, steering: Steering | None) -> Dialogue:
    from saeclamp import AsyncClient

    client = AsyncClient(args.url, api_key=args.api_key)
    variant = await client.variants.get(args.variant) if args.variant else None
    sampling = {name: getattr(args, name) for name in ("temperature", "repetition_penalty", "max_tokens", "seed")}
    dialogue = Dialogue(client, sampling, steering, variant, args.prompted)
    await dialogue.checked(steering, variant)  # what each question would be refused for is said before the first one
    return dialogue


def _talk(dialogue: Dialogue, runner: asyncio.Runner, args: argparse.Namespace) -> int:
    if is_typed():
        print("Ctrl-C stops an answer, Ctrl-D ends, /help lists commands.")
    if dialogue.steering is None:
        print(NOT_STEERED, file=sys.stderr)
    status = 0
    for number, line in lines():
        try:
            with report_refusals(args):
                if not line.startswith("/"):
                    runner.run(_answer(dialogue, line))
                elif not runner.run(run_chat_command(line, dialogue)):
                    break
        except KeyboardInterrupt:
            if not is_typed():
                raise
            print("Stopped.")
        except CommandError as exc:
            if is_typed():
                print("\n".join(wrap(str(exc), terminal_width())))
            else:
                print(f"saeclamp: line {number}: {exc}", file=sys.stderr, flush=True)
                status = 1
    return status


async def _answer(dialogue: Dialogue, question: str) -> None:
    # where nobody looks on, only what is final is printed
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        await dialogue.ask(question)
        for column in dialogue.columns:
            print(f"{column.title}: {escape_to_one_line(column.answer)}", flush=True)
            warn(column.receipt.warnings if column.receipt else ())
        return
    screen = Repainted(sys.stdout)
    asked = asyncio.ensure_future(dialogue.ask(question))
    try:
        while not asked.done():
            screen.paint(_drawn(dialogue.columns))
            await asyncio.wait([asked], timeout=1 / PER_SECOND)
    finally:
        if not asked.done():
            asked.cancel()
            with suppress(asyncio.CancelledError):
                await asked  # until its connections are closed, which ends the generations
        screen.paint(_drawn(dialogue.columns), is_final=True)
    await asked


def _drawn(columns: list[ChatColumn]) -> list[str]:
    cells = [[*map(escape_control_chars, column.answer.splitlines()), "", *_done(column)] for column in columns]
    return side_by_side([column.title for column in columns], cells, terminal_width())


def _done(column: ChatColumn) -> list[str]:
    """Say what a receipt says, a line an intervention, and what it warns of."""
    if column.receipt is None:
        return []
    done = [done_by(item) for item in column.receipt.interventions]
    return [escape_to_one_line(line) for line in (*done, *(f"warning: {one}" for one in column.receipt.warnings))]
