"""Every command but `serve`, on the command line. A command's module builds its parser without torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from saeclamp_saes.cli import convert, harvest, label, labels, library, measure, train, verify


def register(commands: Any, resolve_model: Callable[[str], str]) -> None:
    """
    Add the commands to a command line.

    commands:      result of `ArgumentParser.add_subparsers`
    resolve_model: maps a model's name on the command line to the folder or hub id that it stands for
    """
    parser = commands.add_parser(
        "sae",
        help="find, add, convert and check SAEs",
        description="Find SAEs, keep them in your library, convert pickled ones, and check them on a model.",
    )
    subcommands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    library.register(subcommands)
    convert.register(subcommands)
    verify.register(subcommands, resolve_model)
    harvest.register(commands, resolve_model)
    train.register(commands, resolve_model)
    label.register(commands, resolve_model)
    labels.register(commands)
    measure.register(commands, resolve_model)


Run = Callable[[argparse.Namespace], int]
"""A command, which its parser sets as `run`: takes the parsed arguments, returns the exit status."""
