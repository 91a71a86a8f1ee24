"""
A fleet: servers on many machines that answer as one, because all that an answer depends on is the same on each.

The first server of a fleet writes into the database what it is, field by field, and what it measured of its SAEs. Every
later one is refused where a field differs, and takes what is written: measured again, lengths would be an ulp off, and with
them `meaning` and `spec`. Until one of them answers requests, what is written binds nobody: its start may have failed.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from sqlalchemy import Connection, select

from saeclamp_server.database import Alone, Database, DatabaseError
from saeclamp_server.database.tables import fleets
from saeclamp_server.model_info import StartupError
from saeclamp_server.site_norms import QuickCheckResult, SiteNorms

TOLERANCE = 0.01
"""Share by which a length may differ from the fleet's: more is another model or another SAE, whatever they are called."""
MAX_SHOWN = 80
"""Characters of a field's value that a refusal shows."""

MAX_TOLD = 5
"""Fields that a refusal names."""

Fingerprint = Mapping[str, str]
"""Description of a server: the values of its fields by their names, which a refusal shows to the user."""


class FoundedFleet(NamedTuple):
    """A fleet as it is written."""

    fingerprint: Fingerprint
    created: int
    """Unix time at which its first server entered it."""


def check_database(database: Database) -> None:
    """Raise StartupError for a database that other machines cannot use."""
    if not database.is_shared:
        raise StartupError(
            "A fleet shares its variants and vectors, and SQLite is a file of this machine: name a PostgreSQL database with "
            "--variants postgresql+psycopg://user:password@host/database."
        )


def check_fleet(database: Database, name: str, own: Fingerprint) -> None:
    """
    Refuse a server early, before it has all that `join_fleet` wants.

    own: some of its fields
    Raises StartupError where they are not those of the fleet, if there is one whose servers answer requests.
    """
    with _startup(database) as connection:
        kept = connection.execute(select(fleets).where(fleets.c.name == name)).first()
    if kept is not None and kept.is_ready:
        theirs = json.loads(kept.fingerprint)
        _refuse_other(name, own, {field: theirs[field] for field in own if field in theirs})


def join_fleet(
    database: Database, name: str, own: Fingerprint, measured: Mapping[str, QuickCheckResult]
) -> dict[str, QuickCheckResult]:
    """
    Enter a fleet, or found it. `confirm_fleet` must follow when this server is about to answer requests.

    measured: by the name of the SAE or of the vector bank
    Returns what to serve with in its place. Raises StartupError where this server would answer otherwise than the others.
    """
    row = {
        "name": name,
        "fingerprint": json.dumps(own, sort_keys=True),
        "lengths": _written(measured),
        "is_ready": False,
        "created": int(time.time()),
    }
    with _startup(database) as connection:
        kept = connection.execute(select(fleets).where(fleets.c.name == name)).first()
        if kept is not None:
            try:
                return _taken(name, own, measured, kept)
            except StartupError:
                if kept.is_ready:
                    raise
        connection.execute(fleets.delete().where(fleets.c.name == name))
        connection.execute(fleets.insert().values(row))
    return dict(measured)


def confirm_fleet(database: Database, name: str, own: Fingerprint, joined: Mapping[str, QuickCheckResult]) -> None:
    """
    Let a fleet be what this server has entered it as, from now on.

    joined: what `join_fleet` returned
    Raises StartupError where another server has made it something else meanwhile.
    """
    with _startup(database) as connection:
        kept = connection.execute(select(fleets).where(fleets.c.name == name)).first()
        if kept is not None:
            _refuse_other(name, own, json.loads(kept.fingerprint))
        if kept is None or kept.lengths != _written(joined):
            happened = "forgotten" if kept is None else "founded anew"
            raise StartupError(f"The fleet {name!r} was {happened} while this server started. Start it again.")
        connection.execute(fleets.update().where(fleets.c.name == name).values(is_ready=True))


@contextmanager
def _startup(database: Database) -> Iterator[Connection]:
    try:
        with database.transaction(writes=True, alone=Alone.START) as connection:
            yield connection
    except DatabaseError as exc:
        raise StartupError(str(exc)) from exc


def _taken(
    name: str, own: Fingerprint, measured: Mapping[str, QuickCheckResult], kept: Any
) -> dict[str, QuickCheckResult]:
    """Take what is written of a fleet in place of what was measured. Raises StartupError where that is of another server."""
    _refuse_other(name, own, json.loads(kept.fingerprint))
    written = json.loads(kept.lengths)
    theirs = {of: _from_json(written[of]) for of in measured}
    for of, result in measured.items():
        _refuse_far(name, of, result.norms, theirs[of].norms)
    return theirs


def forget_fleet(database: Database, name: str) -> bool:
    """Delete what a fleet is, so that the next server founds it anew; tell whether there was one."""
    with database.transaction(writes=True) as connection:
        return connection.execute(fleets.delete().where(fleets.c.name == name)).rowcount > 0


def list_fleets(database: Database) -> dict[str, FoundedFleet]:
    """List all fleets that have come to answer requests, with what their servers are."""
    with database.transaction() as connection:
        rows = connection.execute(select(fleets).where(fleets.c.is_ready).order_by(fleets.c.name))
        return {row.name: FoundedFleet(json.loads(row.fingerprint), row.created) for row in rows}


def _refuse_other(name: str, own: Fingerprint, theirs: Fingerprint) -> None:
    others = [field for field in dict.fromkeys([*own, *theirs]) if own.get(field) != theirs.get(field)]
    if others:
        told = [f"{one} is {_shown(own.get(one))} here, and {_shown(theirs.get(one))} there" for one in others]
        more = f"; {len(told) - MAX_TOLD} more fields differ" if len(told) > MAX_TOLD else ""
        raise StartupError(
            f"This server is not like those of the fleet {name!r}: {'; '.join(told[:MAX_TOLD])}{more}. Serve with the same, "
            "or under another --fleet."
        )


def _shown(value: str | None) -> str:
    if value is None:
        return "not there"
    return value if len(value) <= MAX_SHOWN else f"{value[:MAX_SHOWN]}..."


def _refuse_far(name: str, of: str, own: SiteNorms, theirs: SiteNorms) -> None:
    mine, written = (np.array([norms.median_resid_norm or 0.0, *norms.row_norms]) for norms in (own, theirs))
    if len(mine) != len(written) or not np.allclose(mine, written, rtol=TOLERANCE, atol=0.0):
        raise StartupError(
            f"This server is not like those of the fleet {name!r}: the lengths that it measured for {of} differ by more "
            f"than {TOLERANCE:.0%} (the stream's is {own.median_resid_norm} here, and {theirs.median_resid_norm} there), so "
            "the weights or the arithmetic are others."
        )


def _written(measured: Mapping[str, QuickCheckResult]) -> str:
    return json.dumps({of: _to_json(result) for of, result in measured.items()}, sort_keys=True)


def _to_json(result: QuickCheckResult) -> dict[str, Any]:
    norms = result.norms
    rows = base64.b64encode(np.asarray(norms.row_norms, "<f8").tobytes()).decode()
    lengths = {"median_resid_norm": norms.median_resid_norm, "row_norms": rows, "of_resid": norms.of_resid}
    return {**lengths, "fit": result.fit}


def _from_json(written: Mapping[str, Any]) -> QuickCheckResult:
    rows = np.frombuffer(base64.b64decode(written["row_norms"]), "<f8").tolist()
    norms = SiteNorms(written["median_resid_norm"], rows, written["of_resid"])
    return QuickCheckResult(norms, written["fit"])
