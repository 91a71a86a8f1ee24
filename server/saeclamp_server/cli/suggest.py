"""Output of `saeclamp features suggest`, and its suggestion saved as a variant."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from saeclamp_saes.io.sanitize import escape_to_one_line
from saeclamp_server.cli.descriptions import about
from saeclamp_server.cli.server_client import CommandError
from saeclamp_server.cli.tables import print_table

if TYPE_CHECKING:
    from saeclamp import Client
    from saeclamp.types import SuggestedFeature, SuggestedTrial, Suggestion, Variant

MAX_DESCRIPTION = 2000
"""Characters that a variant's description may have."""


def check_name(client: Client, name: str) -> None:
    """Raise CommandError where nothing could be saved under a name: it is asked before minutes of trying."""
    from saeclamp import NotFoundError
    from saeclamp.types.variants import VARIANT_NAME

    if not re.fullmatch(VARIANT_NAME, name):
        raise CommandError(
            f"No variant can be named {name!r}: it has up to 64 letters, digits, '_', '.' and '-', and begins with a letter "
            "or digit."
        )
    try:
        is_fixed = client.variants.get(name).read_only
    except NotFoundError:
        return
    if is_fixed:
        raise CommandError(f"{name} is a variant of the feature book, which cannot be replaced; choose another name.")


def save(client: Client, name: str, found: Suggestion) -> Variant:
    """Save a suggestion as a variant. Raises CommandError where nothing was found."""
    if found.steering is None:
        raise CommandError(f"Nothing was found, so nothing is saved as {name}.")
    description = f"Suggested for: {found.wish}"
    return client.variants.create(name, found.steering, description=description[:MAX_DESCRIPTION])


def print_suggestion(found: Suggestion) -> None:
    """Print the steering, how it was tested, and what was not taken."""
    print(json.dumps(found.steering) if found.steering else escape_to_one_line(found.note or "Nothing found."))
    if found.example:
        print(f"e.g. {escape_to_one_line(found.example)}")
    if found.trials:
        print()
        headers = ("tested (x max)", "gain", "random features gain", "p, corrected", "perplexity", "why not")
        print_table(headers, _lines(_trial(one) for one in found.trials))
    if found.alternatives:
        print()
        print_table(("not taken", "name", "about", "why not"), _lines(_alternative(one) for one in found.alternatives))
    if found.test:
        print(escape_to_one_line(f"Tested on {found.test}."))


def _lines(rows: Iterable[tuple[str, ...]]) -> list[list[str]]:
    return [[escape_to_one_line(cell) for cell in row] for row in rows]


def _trial(one: SuggestedTrial) -> tuple[str, ...]:
    parts = (f"{strength:g} x {feature}" for feature, strength in zip(one.features, one.strengths, strict=True))
    return (
        " + ".join(parts),
        f"{one.gain:+.3f}",
        "" if one.control is None else f"{one.control:+.3f}",
        f"{one.p:.2g}",
        f"{one.perplexity:.1f} x",
        one.reason or "chosen",
    )


def _alternative(one: SuggestedFeature) -> tuple[str, ...]:
    return one.feature, one.name or "", about(one), one.reason or ""
