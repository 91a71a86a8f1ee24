"""
Commands that speak to a running server.

    asking.py    where the server is, and what becomes of its refusals
    steering.py  steering on a command line
    features.py  `saeclamp features search | show | inspect | contrast | attribute | neighbours`
    variants.py  `saeclamp variants list | show | create | delete | export | import`
    chat.py      `saeclamp chat`: unsteered, steered and prompted answers in columns
"""

from __future__ import annotations

from typing import Any

from saeclamp_server.terminal import chat, features, variants


def register(commands: Any) -> None:
    """Add the commands to the command line; `commands` is what `ArgumentParser.add_subparsers` returned."""
    for command in (features, variants, chat):
        command.register(commands)
