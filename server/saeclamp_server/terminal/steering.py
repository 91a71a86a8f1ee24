"""Steering on a command line: `--clamp bundled/sea=1 --add bundled/54=30act`, or a file."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from saeclamp_server.terminal.asking import TerminalError

if TYPE_CHECKING:
    from saeclamp.types import Operation, Steering

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
    parser.add_argument("--steering", type=Path, metavar="FILE", help="a `steering` object as JSON, in place of these")


def steering_of(args: argparse.Namespace) -> Steering | None:
    """Read the flags; None where none is given. Raises TerminalError, and the client's InvalidArgumentError."""
    from saeclamp.types import Add, Clamp, Steering, as_steering

    moves: list[Operation] = [Clamp(**_move(text)) for text in args.clamp]
    moves += [Add(**_move(text)) for text in args.add]
    if args.steering is None:
        return Steering(interventions=tuple(moves)) if moves else None
    if moves:
        raise TerminalError("Give --steering, or --clamp and --add, not both.")
    try:
        value = json.loads(args.steering.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise TerminalError(f"{args.steering} cannot be read as JSON: {exc}.") from exc
    return as_steering(value.get("steering", value) if isinstance(value, dict) else value)


def _move(text: str) -> dict[str, object]:
    match = _MOVE.fullmatch(text)
    if match is None:
        raise TerminalError(f"{text!r} is no FEATURE=VALUE, such as bundled/sea=1 or bundled/54=30act.")
    try:
        value = float(match["value"])
    except ValueError:
        raise TerminalError(f"{match['value']!r} is not a number.") from None
    if "/" not in match["feature"]:
        raise TerminalError(f"{match['feature']!r} is no feature: write <sae>/<name or index>, such as bundled/sea.")
    return {"feature": match["feature"], "value": value, "unit": match["unit"] or "max_act"}
