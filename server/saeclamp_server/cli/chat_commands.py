"""Commands of a chat, which begin with a slash."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

from saeclamp_saes.io.sanitize import escape_to_one_line
from saeclamp_server.cli.line_editing import is_typed
from saeclamp_server.cli.server_client import CommandError, warn
from saeclamp_server.cli.steering_flags import clamp_of, in_words, saved_as, value_of
from saeclamp_server.cli.tables import grid, terminal_width

if TYPE_CHECKING:
    from saeclamp_server.cli.chat_columns import Dialogue

NONE = ("off", "none")
HELP = {
    "/clamp FEATURE VALUE": "set a feature, such as bundled/sea, to 0.75 (x its maximum), 30act or 0.2resid_norm; 'off' "
    "lets it go",
    "/clamp": "show what steers",
    "/variant NAME": "steer as a variant does, beside what is clamped; 'none' leaves it",
    "/save NAME": "save what steers as a variant",
    "/reset": "begin anew",
    "/help": "show this",
    "/quit": "end; so does the end of the input",
}
COMMANDS = [*dict.fromkeys(usage.split()[0] for usage in HELP)]
NOT_STEERED = "Nothing is steered yet: /clamp FEATURE VALUE or /variant NAME does."


async def run_chat_command(line: str, dialogue: Dialogue) -> bool:
    """Do what a line says; returns whether the chat goes on. Raises CommandError, and what the client raises."""
    from saeclamp.types.refusals import did_you_mean, shown  # here, because `--help` can do without the client

    command, *words = line.split()
    match command, words:
        case "/quit", []:
            return False
        case "/reset", []:
            dialogue.reset()
            _say("What was said is forgotten; what steers stays.")
        case "/help", []:
            print(helped(terminal_width()), file=_beside(), flush=True)
        case "/clamp", []:
            _say(_shown(dialogue))
        case "/clamp", [feature, value]:
            await _clamp(dialogue, feature, value)
        case "/variant", [name]:
            variant = await dialogue.take_variant(None if name in NONE else name)
            _say(f"Steered as {variant.id}." if variant else "No variant steers.")
        case "/save", [name]:
            await _save(dialogue, name)
        case _ if command in COMMANDS:
            usages = " or ".join(usage for usage in HELP if usage.split()[0] == command)
            raise CommandError(escape_to_one_line(f"It is {usages}, not {shown(line)}."))
        case _:
            wrong = f"There is no {command}.{did_you_mean(command, COMMANDS)}"
            raise CommandError(escape_to_one_line(f"{wrong} /help lists commands."))
    return True


def helped(width: int) -> str:
    """List the commands in lines of at most `width` characters."""
    return "\n".join(grid([*HELP.items()], width))


async def _clamp(dialogue: Dialogue, feature: str, value: str) -> None:
    if value in NONE:
        try:
            await dialogue.clamp(feature, None)
        except KeyError:
            raise CommandError(escape_to_one_line(f"{feature!r} is not clamped here. {_shown(dialogue)}")) from None
        _say(f"{feature} is let go.")
        return
    clamp = clamp_of(f"{feature}={value}")
    checked = await dialogue.clamp(feature, clamp)
    _say(f"{feature} is clamped to {value_of(clamp)}.")
    warn(checked.warnings if checked else ())


async def _save(dialogue: Dialogue, name: str) -> None:
    if dialogue.steering is None:
        raise CommandError(NOT_STEERED)
    saved = await dialogue.client.variants.create(name, dialogue.steering)
    _say(f"{saved_as(saved)} Any client can ask for it as a model.")


def _shown(dialogue: Dialogue) -> str:
    from saeclamp.types import as_steering

    parts = [f"Steered by {in_words(dialogue.own)}."] if dialogue.own else []
    if variant := dialogue.variant:
        parts.append(f"Steered as {variant.id} is, by {in_words(as_steering(variant.steering))}.")
    return " ".join(parts) or NOT_STEERED


def _say(text: str) -> None:
    """Answer a command in a line."""
    print(escape_to_one_line(text), file=_beside(), flush=True)


def _beside() -> TextIO:
    """Choose the stream for what is said beside answers: where lines are piped, only answers go to the output."""
    return sys.stdout if is_typed() else sys.stderr
