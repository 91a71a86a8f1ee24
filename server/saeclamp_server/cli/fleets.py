"""`saeclamp fleets ...`: what the servers of a fleet are, read from their database; none of them is asked."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from saeclamp_server.cli.server_client import CommandError, add_yes, confirmed
from saeclamp_server.cli.tables import print_facts, print_table

if TYPE_CHECKING:
    from saeclamp_server.database import Database

NEEDS = ("sqlalchemy", "alembic")
SERVED_AS = "the names that it is served under"


def register(commands: Any) -> None:
    """Add the command and its subcommands."""
    parser = commands.add_parser(
        "fleets",
        help="show what the servers of a fleet are, or forget it",
        description="Show what the servers of a fleet are, or forget it. Read from the database; no server is asked.",
    )
    subcommands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _command(subcommands, "list", "list all fleets", _list)
    show = _command(subcommands, "show", "show what a server must be to belong to a fleet", _show)
    show.add_argument("name", help="as in --fleet")
    forget = _command(
        subcommands, "forget", "forget a fleet; the next server that is started under its name founds it anew", _forget
    )
    forget.add_argument("name", help="as in --fleet; none of its servers should run any more")
    add_yes(forget)


def _command(commands: Any, name: str, what: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
    parser.add_argument("--variants", metavar="URL", required=True, help="the database, as its servers are given it")
    parser.set_defaults(run=run, needs=NEEDS)
    return parser


def _list(args: argparse.Namespace) -> int:
    from saeclamp_server.fleet import list_fleets

    fleets = list_fleets(_open(args))
    rows = []
    for name, one in fleets.items():
        served_as = ", ".join(json.loads(one.fingerprint[SERVED_AS]))
        founded = datetime.fromtimestamp(one.created, UTC).strftime("%Y-%m-%d %H:%M UTC")
        rows.append((name, served_as, one.fingerprint["saeclamp"], founded))
    print_table(("fleet", "served as", "saeclamp", "founded"), rows)
    return 0


def _show(args: argparse.Namespace) -> int:
    from saeclamp_server.fleet import list_fleets

    fleets = list_fleets(_open(args))
    if args.name not in fleets:
        raise CommandError(_unknown(args.name, fleets))
    print_facts(fleets[args.name].fingerprint)
    return 0


def _forget(args: argparse.Namespace) -> int:
    from saeclamp_server.fleet import forget_fleet, list_fleets

    database = _open(args)
    fleets = list_fleets(database)
    if args.name not in fleets:
        raise CommandError(_unknown(args.name, fleets))
    if not confirmed(args, f"Forget the fleet {args.name}, with the lengths that its servers use?"):
        return 1
    forget_fleet(database, args.name)
    print(f"forgot {args.name}")
    return 0


def _open(args: argparse.Namespace) -> Database:
    from saeclamp_server.database import Database
    from saeclamp_server.fleet import check_database

    # as they are: a newer version's tables would keep servers of an older one from starting
    database = Database(args.variants, is_migrated=False)
    check_database(database)
    if not database.has_tables:
        raise CommandError("This database has no tables of saeclamp: no server has used it yet.")
    return database


def _unknown(name: str, fleets: Any) -> str:
    return f"There is no fleet {name!r}. There are: {', '.join(fleets) or 'none'}."
