"""`saeclamp validate` and `saeclamp compare`: trying a steering on a running server before it is put to use."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from saeclamp_saes.cli.arg_types import count_arg
from saeclamp_saes.io.sanitize import escape_control_chars, escape_to_one_line
from saeclamp_server.cli.progress import progress_shown
from saeclamp_server.cli.server_client import add_command, warn
from saeclamp_server.cli.steering_flags import add_steering, add_variant, done_by, steering_with_variant, value_of
from saeclamp_server.cli.tables import print_json, print_table, side_by_side, terminal_width
from saeclamp_server.cli.texts import add_conversation, add_passage, read_conversation_flags, read_passage_flags

if TYPE_CHECKING:
    from saeclamp import Client, Comparison
    from saeclamp.types import ComparedAnswer

DECODING = ("temperature", "top_p", "repetition_penalty", "max_tokens")


def register(commands: Any) -> None:
    """Add the commands."""
    validate = add_command(commands, "validate", "say what a steering would do, without running anything", _validate)
    add_steering(validate)
    add_variant(validate)
    add_conversation(validate)
    validate.add_argument("--json", action="store_true", help="print the server's answer as JSON")

    compare = add_command(commands, "compare", "answer unsteered, steered and prompted, with the same seeds", _compare)
    add_passage(compare, "a text to be continued")
    add_steering(compare)
    add_variant(compare)
    compare.add_argument("--prompted", metavar="TEXT", help="a third column, whose system message says this")
    compare.add_argument("--seeds", type=_seeds, default=(0,), metavar="N,...", help="an answer for each (default 0)")
    compare.add_argument(
        "--max-tokens", type=count_arg, default=100, metavar="N", help="of an answer (default %(default)s)"
    )
    compare.add_argument("--temperature", type=float, default=0.0, metavar="X", help="default %(default)s")
    compare.add_argument("--top-p", type=float, default=1.0, metavar="X", help="default %(default)s")
    compare.add_argument("--repetition-penalty", type=float, default=1.1, metavar="X", help="default %(default)s")
    compare.add_argument("--json", action="store_true", help="print the server's answer as JSON")


def _validate(args: argparse.Namespace, client: Client) -> int:
    from saeclamp.types.dose import dose_in_words  # here, because `--help` can do without the client

    found = client.steering.validate(steering_with_variant(args, client), messages=read_conversation_flags(args))
    if args.json:
        print_json(found.model_dump(mode="json"))
        return 0
    rows = [
        (
            one.feature or one.vector or "",
            escape_to_one_line(one.name or one.description or "-"),
            one.rule or "",
            one.site,
            one.op,
            value_of(one),
            "" if one.value_act is None else f"{one.value_act:.4g}",
            "" if one.dose is None else dose_in_words(one.dose),
            f"{one.green_zone[0]:g} to {one.green_zone[1]:g}" if one.green_zone else "",
        )
        for one in found.interventions
    ]
    headers = ("moved", "name or about", "rule", "site", "op", "value", "in act", "dose up to", "green zone")
    print_table(headers, [[escape_to_one_line(cell) for cell in row] for row in rows])
    for site, dose in found.doses.items():
        print(f"all at {site}\tdose up to {dose_in_words(dose)}")
    warn(found.warnings)
    return 0


def _compare(args: argparse.Namespace, client: Client) -> int:
    options = {name: getattr(args, name) for name in (*DECODING, "seeds", "prompted")}
    given = {name: value for name, value in options.items() if value is not None}
    steering, passage = steering_with_variant(args, client), read_passage_flags(args)
    with progress_shown() as progress:
        found = client.steering.compare(steering, passage, progress=progress, **given)
    if args.json:
        print_json(found.model_dump(mode="json"))
        return 0
    columns = {"default": found.default, "steered": found.steered}
    if found.prompted is not None:
        columns["prompted"] = found.prompted
    if sys.stdout.isatty():
        for answers in zip(*columns.values(), strict=True):
            cells = [[escape_control_chars(answer.text), "", _figures(answer)] for answer in answers]
            titles = [f"{title}, seed {answer.seed}" for title, answer in zip(columns, answers, strict=True)]
            print("\n".join(side_by_side(titles, cells, terminal_width())))
    else:
        _print_rows(columns)
    for line in _done(found):
        print(line)
    warn(dict.fromkeys(warning for receipt in found.receipts for warning in receipt.warnings))
    return 0


def _print_rows(columns: dict[str, tuple[ComparedAnswer, ...]]) -> None:
    rows = [
        (
            title,
            str(answer.seed),
            _number(answer.kl),
            _number(answer.perplexity),
            _number(answer.repetition),
            escape_to_one_line(answer.text),
        )
        for title, answers in columns.items()
        for answer in answers
    ]
    print_table(("column", "seed", "kl", "perplexity", "repetition", "text"), rows)


def _done(found: Comparison) -> list[str]:
    """Say what was done to the first of the steered answers; the others were steered alike."""
    return [escape_to_one_line(done_by(item)) for receipt in found.receipts[:1] for item in receipt.interventions]


def _figures(answer: ComparedAnswer) -> str:
    figures = {"KL": answer.kl, "perplexity": answer.perplexity, "repetition": answer.repetition}
    return ", ".join(f"{name} {value:.3g}" for name, value in figures.items() if value is not None)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _seeds(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and len(part) <= 10 for part in parts):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} are no seeds such as 0,1,2")
    return tuple(map(int, parts))
