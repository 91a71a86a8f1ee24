"""`saeclamp vectors ...`: directions of your own on a running server."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from saeclamp_saes.io.sanitize import escape_to_one_line
from saeclamp_server.cli.control_vector import add_import
from saeclamp_server.cli.server_client import add_command, add_yes, confirmed
from saeclamp_server.cli.tables import print_facts, print_table
from saeclamp_server.cli.texts import read_bytes

if TYPE_CHECKING:
    from saeclamp import Client
    from saeclamp.types import StoredVector


def register(commands: Any) -> None:
    """Add the command and its subcommands."""
    parser = commands.add_parser(
        "vectors",
        help="upload directions of your own",
        description="Upload directions of your own to a running server.",
    )
    subcommands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    upload = add_command(subcommands, "upload", "upload a vector", _upload)
    upload.add_argument("name", help="what interventions will call it")
    upload.add_argument(
        "file",
        help="a safetensors file: one one-dimensional tensor, and layer, site, sign and source as metadata; - reads the "
        "standard input",
    )
    add_import(subcommands)
    add_command(subcommands, "list", "list all vectors, and where they can sit", _list)
    get = add_command(subcommands, "get", "show a vector", _get)
    get.add_argument("name")
    delete = add_command(subcommands, "delete", "delete a vector", _delete)
    delete.add_argument("name")
    add_yes(delete)


def _upload(args: argparse.Namespace, client: Client) -> int:
    _print(client.vectors.upload(args.name, read_bytes(args.file)))
    return 0


def _list(args: argparse.Namespace, client: Client) -> int:
    found = client.vectors.list()
    rows = [
        (one.name, one.site, f"{one.sign:+d}", f"{one.norm:.3g}", _share(one), escape_to_one_line(one.source))
        for one in found.data
    ]
    print_table(("name", "site", "sign", "length", "x resid_norm", "source"), rows)
    print(f"Sites: {', '.join(found.sites) or 'none'}; each holds {found.max_vectors} vectors.")
    return 0


def _get(args: argparse.Namespace, client: Client) -> int:
    _print(client.vectors.get(args.name))
    return 0


def _delete(args: argparse.Namespace, client: Client) -> int:
    vector = client.vectors.get(args.name)
    if not confirmed(args, escape_to_one_line(f"Delete the vector {vector.name} at {vector.site}?")):
        print("Nothing is deleted.")
        return 1
    client.vectors.delete(args.name)
    print(f"{args.name} is deleted.")
    return 0


def _share(vector: StoredVector) -> str:
    return "-" if vector.resid_norm is None else f"{vector.resid_norm:.3g}"


def _print(vector: StoredVector) -> None:
    facts = {
        "name": vector.name,
        "site": vector.site,
        "sign": f"{vector.sign:+d}",
        "length": f"{vector.norm:.4g}",
        "x resid_norm": _share(vector),
        "source": vector.source,
        "sha256": vector.sha256,
    }
    print_facts({name: escape_to_one_line(value) for name, value in facts.items()})
