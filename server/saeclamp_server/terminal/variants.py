"""`saeclamp variants ...`: steering that is saved under a model's name on a running server."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeclamp_saes.commands.tables import print_facts, print_json, print_table
from saeclamp_server.terminal.asking import TerminalError, add_command
from saeclamp_server.terminal.steering import add_steering, steering_of
from saeclamp_server.visible import visible_line

if TYPE_CHECKING:
    from saeclamp import Client
    from saeclamp.types import Variant


def register(commands: Any) -> None:
    """Add the command and its subcommands."""
    parser = commands.add_parser(
        "variants", help="save steering under a model's name", description="Save steering under a model's name."
    )
    subcommands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_command(subcommands, "list", "list all variants", _list)
    show = add_command(subcommands, "show", "show a variant", _show)
    show.add_argument("name", help="<name>, or <name>@<sha> for one of its versions")
    create = add_command(subcommands, "create", "save a steering; the name means it from now on", _create)
    create.add_argument("name", help="letters, digits, '_', '.' and '-'")
    create.add_argument("--description", default="")
    add_steering(create)
    delete = add_command(subcommands, "delete", "delete a variant with all its versions", _delete)
    delete.add_argument("name", help="without @<sha>")
    add_command(subcommands, "export", "print all versions as JSON, for another server", _export)
    take_in = add_command(subcommands, "import", "take in what was exported: all of it, or none", _import)
    take_in.add_argument("file", type=Path, help="what `export` has printed")


def _list(args: argparse.Namespace, client: Client) -> int:
    rows = [
        (
            one.id,
            one.version.rpartition("@")[2],
            "feature book" if one.read_only else "user",
            visible_line(one.description),
        )
        for one in client.variants.list().data
    ]
    print_table(("model", "version", "from", "description"), rows)
    return 0


def _show(args: argparse.Namespace, client: Client) -> int:
    _print(client.variants.get(args.name))
    return 0


def _create(args: argparse.Namespace, client: Client) -> int:
    steering = steering_of(args)
    if steering is None:
        raise TerminalError("Say how it steers: with --clamp, --add or --steering.")
    _print(client.variants.create(args.name, steering, description=args.description))
    return 0


def _delete(args: argparse.Namespace, client: Client) -> int:
    gone = client.variants.delete(args.name)
    print(f"{gone.id} is deleted, with {gone.num_versions} version{'s' if gone.num_versions > 1 else ''}.")
    return 0


def _export(args: argparse.Namespace, client: Client) -> int:
    print_json(client.variants.export().model_dump(mode="json"))
    return 0


def _import(args: argparse.Namespace, client: Client) -> int:
    from saeclamp.types import VariantExport

    try:
        export = VariantExport.model_validate(json.loads(args.file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as exc:
        raise TerminalError(f"{args.file} is no export of variants: {str(exc).splitlines()[0]}") from exc
    taken = client.variants.import_(export)
    print(f"{taken.num_new} new, {taken.num_known} known.")
    return 0


def _print(variant: Variant) -> None:
    facts = {
        "model": variant.id,
        "version": variant.version,
        "description": variant.description or "-",
        "steering": json.dumps(variant.steering),
    }
    print_facts({name: visible_line(value) for name, value in facts.items()})
