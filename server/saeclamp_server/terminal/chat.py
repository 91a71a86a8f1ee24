"""`saeclamp chat`: the same questions, answered unsteered, steered and prompted, in columns."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from saeclamp_saes.commands.numbers import count
from saeclamp_server.terminal.asking import TerminalError, add_server, refusals_told
from saeclamp_server.terminal.steering import add_steering, steering_of
from saeclamp_server.visible import visible, visible_line

if TYPE_CHECKING:
    from rich.console import RenderableType

    from saeclamp import AsyncClient, Receipt
    from saeclamp.types import Steering

HELP = "/reset begins anew, /quit or the end of the input ends."
PER_SECOND = 8
"""How often the columns are drawn while answers come in."""


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "chat",
        help="chat with a running server, unsteered and steered side by side",
        description=f"Chat with a running server in columns: unsteered, steered, and prompted. {HELP}",
    )
    add_server(parser)
    add_steering(parser)
    parser.add_argument("--variant", metavar="NAME", help="steer as this variant does, such as golden-gate")
    parser.add_argument("--prompted", metavar="TEXT", help="a third column, whose system message says this")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--repetition-penalty", type=float, default=1.1)
    parser.add_argument("--max-tokens", type=count, default=200)
    parser.add_argument("--seed", type=int, default=0, help="shared by the columns")
    parser.set_defaults(run=_run)


@dataclass
class Column:
    """A conversation of its own: steered answers lead elsewhere."""

    title: str
    model: str | None
    steering: Steering | None = None
    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)
    answer: str = ""
    """As far as it has come."""
    receipt: Receipt | None = None

    def reset(self) -> None:
        """Forget what was said."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []
        self.answer, self.receipt = "", None

    async def ask(self, client: AsyncClient, question: str, sampling: dict[str, Any]) -> None:
        """Stream an answer."""
        self.messages.append({"role": "user", "content": question})
        self.answer, self.receipt = "", None
        stream = await client.chat.completions.create(
            messages=self.messages, model=self.model, steering=self.steering, stream=True, **sampling
        )
        async for chunk in stream:
            self.answer += chunk.text
            self.receipt = chunk.steering or self.receipt
        self.messages.append({"role": "assistant", "content": self.answer})


def _run(args: argparse.Namespace) -> int:
    with refusals_told(args.url):
        steering = steering_of(args)
        if (steering is None) == (args.variant is None):
            raise TerminalError("Say how it is to be steered: with --variant, or with --clamp, --add or --steering.")
        return asyncio.run(_chat(args, steering))


async def _chat(args: argparse.Namespace, steering: Steering | None) -> int:
    from saeclamp import AsyncClient

    async with AsyncClient(args.url, api_key=args.api_key) as client:
        columns = [Column("default", None), await _steered(client, args, steering)]
        columns += [Column("prompted", None, system=args.prompted)] if args.prompted else []
        for column in columns:
            column.reset()
        sampling = {name: getattr(args, name) for name in ("temperature", "repetition_penalty", "max_tokens", "seed")}
        if sys.stdin.isatty():
            print(HELP)
        for question in _questions():
            if question == "/reset":
                for column in columns:
                    column.reset()
            elif question.startswith("/"):
                print(f"There is no {question.split()[0]}. {HELP}")
            else:
                await _answer(client, columns, question, sampling)
    return 0


async def _steered(client: AsyncClient, args: argparse.Namespace, steering: Steering | None) -> Column:
    if steering is not None:
        return Column("steered", None, steering)
    variant = await client.variants.get(args.variant)
    return Column(variant.id, variant.id)


def _questions() -> Iterator[str]:
    while True:
        try:
            question = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if question == "/quit":
            return
        if question:
            yield question


async def _answer(client: AsyncClient, columns: Sequence[Column], question: str, sampling: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console()
    live = Live(_table(columns), console=console, refresh_per_second=PER_SECOND, get_renderable=lambda: _table(columns))
    # where nobody looks on, only what is final is printed
    with live if console.is_terminal else nullcontext():
        try:
            async with asyncio.TaskGroup() as group:
                for column in columns:
                    group.create_task(column.ask(client, question, sampling))
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
    if not console.is_terminal:
        for column in columns:
            print(f"{column.title}: {visible_line(column.answer)}")


def _table(columns: Sequence[Column]) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False)
    for column in columns:
        table.add_column(column.title, ratio=1, overflow="fold")
    table.add_row(*(Text("\n".join(map(visible, column.answer.splitlines())), overflow="fold") for column in columns))
    table.add_row(*(Text(_done(column.receipt), style="dim") for column in columns))
    return table


def _done(receipt: Receipt | None) -> str:
    """Say what a receipt says, a line an intervention."""
    if receipt is None:
        return ""
    return "\n".join(
        f"{item.op} {item.feature or item.vector}: {item.tokens.prompt} prompt and {item.tokens.generated} answer tokens"
        + (f", dose {item.dose.mean:.2f}" if item.dose else "")
        for item in receipt.interventions
    )
