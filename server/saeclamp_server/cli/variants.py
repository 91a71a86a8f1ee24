"""`saeclamp variants ...`: steering that is saved under a model's name on a running server."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from saeclamp_saes.io.sanitize import escape_to_one_line, first_line
from saeclamp_server.cli.server_client import CommandError, add_command, add_yes, confirmed, warn
from saeclamp_server.cli.steering_flags import add_steering, saved_as, steering_from_flags
from saeclamp_server.cli.tables import print_facts, print_json, print_table
from saeclamp_server.cli.texts import read_json

if TYPE_CHECKING:
    from saeclamp import Client
    from saeclamp.types import ExportedVariant, Steering, Variant, VariantExport


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
    create.add_argument("--description", default="", help="what lists of variants say of it")
    create.add_argument("--alias", help="a name without ':', for clients that take names apart at one")
    add_steering(create)
    delete = add_command(subcommands, "delete", "delete a variant with all its versions", _delete)
    delete.add_argument("name", help="without @<sha>")
    add_yes(delete)
    export = add_command(subcommands, "export", "print all versions as JSON, for another server", _export)
    export.add_argument("name", nargs="*", help="only these variants, or <name>@<sha> for only that version")
    take_in = add_command(subcommands, "import", "take in what was exported: all of it, or none", _import)
    take_in.add_argument("file", help="what `export` has printed; - reads the standard input")


def _list(args: argparse.Namespace, client: Client) -> int:
    rows = [
        (
            one.id,
            one.version.rpartition("@")[2],
            one.alias or "-",
            "feature book" if one.read_only else "user",
            escape_to_one_line(one.description),
        )
        for one in client.variants.list().data
    ]
    print_table(("model", "version", "alias", "from", "description"), rows)
    return 0


def _show(args: argparse.Namespace, client: Client) -> int:
    _print(client.variants.get(args.name))
    return 0


def _create(args: argparse.Namespace, client: Client) -> int:
    steering = steering_from_flags(args)
    if steering is None:
        raise CommandError("Say how it steers: with --clamp, --add or --steering.")
    created = client.variants.create(args.name, steering, description=args.description, alias=args.alias)
    _print(created)
    if created.is_new is not None:  # older servers do not say
        print(escape_to_one_line(saved_as(created)), file=sys.stderr)
    warn(_doubts(client, steering))
    return 0


def _doubts(client: Client, steering: Steering) -> tuple[str, ...]:
    from saeclamp import BadRequestError

    try:
        return client.steering.validate(steering).warnings
    except BadRequestError:  # it chooses tokens by role, and there is no conversation yet
        return ()


def _delete(args: argparse.Namespace, client: Client) -> int:
    variant = client.variants.get(args.name)
    if not confirmed(args, escape_to_one_line(f"Delete {variant.id} with all its versions?")):
        print("Nothing is deleted.")
        return 1
    gone = client.variants.delete(args.name)
    print(f"{gone.id} is deleted, with {gone.num_versions} version{'s' if gone.num_versions > 1 else ''}.")
    return 0


def _export(args: argparse.Namespace, client: Client) -> int:
    export = client.variants.export()
    chosen = [one for name in args.name for one in _named(name, export)]
    if args.name:
        export = export.model_copy(update={"data": tuple(one for one in export.data if one in chosen)})
    print_json(export.model_dump(mode="json"))
    return 0


def _named(name: str, export: VariantExport) -> list[ExportedVariant]:
    """Find the versions that are meant by `[<base>:]<name>[@<sha>]`. Raises CommandError where there is none."""
    asked, _, sha = name.rpartition(":")[2].partition("@")
    base = name.rpartition(":")[0] or None
    found = [
        one for one in export.data if one.name == asked and base in (None, one.base) and one.sha256.startswith(sha)
    ]
    if not found:
        known = ", ".join(dict.fromkeys(one.name for one in export.data)) or "none"
        raise CommandError(escape_to_one_line(f"Nobody has created a variant {name!r}. Created: {known}."))
    return found


def _import(args: argparse.Namespace, client: Client) -> int:
    from pydantic import ValidationError

    from saeclamp.types import VariantExport

    try:
        export = VariantExport.model_validate(read_json(args.file))
    except ValidationError as exc:
        raise CommandError(f"{args.file} is no export of variants: {first_line(exc)}") from exc
    taken = client.variants.import_(export)
    print(f"{taken.num_new} new, {taken.num_known} known.")
    return 0


def _print(variant: Variant) -> None:
    facts = {
        "model": variant.id,
        "version": variant.version,
        "alias": variant.alias or "-",
        "description": variant.description or "-",
        "steering": json.dumps(variant.steering),
    }
    print_facts({name: escape_to_one_line(value) for name, value in facts.items()})
