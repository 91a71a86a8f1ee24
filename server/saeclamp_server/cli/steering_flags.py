"""Steering on a command line: `--clamp bundled/sea=1 --add bundled/54=30act`, or a file."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from saeclamp_server.cli.server_client import CommandError
from saeclamp_server.cli.texts import read_json

if TYPE_CHECKING:
    from saeclamp import Client
    from saeclamp.types import Clamp, InterventionReceipt, Operation, PlannedIntervention, Steering, Tokens, Variant

_MOVE = re.compile(r"(?P<feature>[^=\s]+)=(?P<value>[+-]?[\d.]+(?:e[+-]?\d+)?)(?P<unit>max_act|act|resid_norm)?")


def add_steering(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    for op, what in (("clamp", "set a feature's activation"), ("add", "add to a feature's activation")):
        parser.add_argument(
            f"--{op}",
            action="append",
            default=[],
            metavar="FEATURE=VALUE",
            help=f"{what}; in multiples of its maximum, or =30act, =0.2resid_norm. Repeat for several",
        )
    parser.add_argument(
        "--steering",
        metavar="FILE",
        help="a `steering` object as JSON, in place of these; - reads it from the standard input",
    )


def add_variant(parser: argparse.ArgumentParser) -> None:
    """Add the flag that steers as a variant does."""
    parser.add_argument(
        "--variant",
        metavar="NAME",
        help="steer as this variant does, such as golden-gate; the flags above are added to it",
    )


def steering_from_flags(args: argparse.Namespace) -> Steering | None:
    """Read the flags; None where none is given. Raises CommandError, and the client's InvalidArgumentError."""
    from saeclamp.types import Add, Steering, as_steering

    moves: list[Operation] = [clamp_of(text) for text in args.clamp]
    moves += [Add(**_move(text)) for text in args.add]
    if args.steering is None:
        return Steering(interventions=tuple(moves)) if moves else None
    if moves:
        raise CommandError("Give --steering, or --clamp and --add, not both.")
    value = read_json(args.steering)
    return as_steering(value.get("steering", value) if isinstance(value, dict) else value)


def steering_with_variant(args: argparse.Namespace, client: Client) -> Steering:
    """Read the flags, and those of a variant with them. Raises CommandError where nothing is given."""
    own = steering_from_flags(args)
    if args.variant is None and own is None:
        raise CommandError("Say how it is to be steered: with --clamp, --add, --steering or --variant.")
    joined = merge_variant(client.variants.get(args.variant) if args.variant else None, own)
    assert joined is not None, "one of both is there"
    return joined


def merge_variant(variant: Variant | None, own: Steering | None) -> Steering | None:
    """Put a variant's parts behind one's own, as the server does where a request has both."""
    from saeclamp.types import Steering, as_steering

    if variant is None:
        return own
    of_variant = as_steering(variant.steering)
    if own is None:
        return of_variant
    return Steering(
        interventions=(*own.interventions, *of_variant.interventions),
        rules=(*own.rules, *of_variant.rules),
        readout=own.readout or of_variant.readout,
        receipt=own.receipt,
    )


def clamp_of(text: str) -> Clamp:
    """Read `FEATURE=VALUE`. Raises CommandError, and the client's InvalidArgumentError."""
    from saeclamp.types import Clamp

    return Clamp(**_move(text))


def in_words(steering: Steering) -> str:
    """Write a steering in a line, in the words of its flags and receipts: `clamp bundled/sea 1 max_act`."""
    parts = [_moved(move) for move in steering.interventions]
    for rule in steering.rules:
        parts.append(
            f"rule {rule.name} ({rule.then if isinstance(rule.then, str) else ', '.join(map(_moved, rule.then))})"
        )
    if steering.readout is not None:
        parts.append("a readout, which moves nothing")
    return ", ".join(parts)


def _moved(move: Operation) -> str:
    return " ".join(filter(None, (move.op, move.target, value_of(move), _scope(move.tokens))))


def _scope(tokens: Tokens) -> str:
    """Name the tokens, unless it is all of them."""
    if isinstance(tokens, str):
        return "" if tokens == "all" else f"at {tokens} tokens"
    ((kind, which),) = tokens.model_dump(mode="json").items()
    return f"at tokens: {kind} {', '.join(map(str, which)) if isinstance(which, list) else which}"


def value_of(move: Operation | PlannedIntervention) -> str:
    """Write the value of an operation with its unit, or its factor; nothing of one that has none."""
    factor, value = getattr(move, "factor", None), getattr(move, "value", None)
    if factor is not None:
        return f"x {factor:g}"
    return "" if value is None else f"{value:g} {getattr(move, 'unit', None) or ''}".strip()


def saved_as(variant: Variant) -> str:
    """Say what became of a steering that was to be saved."""
    if variant.is_new is False:
        return f"{variant.version} exists already, unchanged; {variant.id} means it."
    return f"Saved: {variant.id} means {variant.version}."


def done_by(item: InterventionReceipt) -> str:
    """Say in a line what an intervention did."""
    from saeclamp.types.dose import dose_in_words  # here, because `--help` can do without the client

    dose = f", dose {dose_in_words(item.dose.mean)}" if item.dose else ""
    named = f"{item.sae}/{item.name}" if item.sae and item.name else item.feature or item.vector
    return f"{item.op} {named}: {item.tokens.prompt} prompt and {item.tokens.generated} answer tokens{dose}"


def _move(text: str) -> dict[str, object]:
    match = _MOVE.fullmatch(text)
    if match is None:
        raise CommandError(f"{text!r} is no FEATURE=VALUE, such as bundled/sea=1 or bundled/54=30act.")
    try:
        value = float(match["value"])
    except ValueError:
        raise CommandError(f"{match['value']!r} is not a number.") from None
    if "/" not in match["feature"]:
        raise CommandError(f"{match['feature']!r} is no feature: write <sae>/<name or index>, such as bundled/sea.")
    return {"feature": match["feature"], "value": value, "unit": match["unit"] or "max_act"}
