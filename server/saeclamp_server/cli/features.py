"""`saeclamp features ...`: looking for features on a running server."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from saeclamp_saes.io.sanitize import escape_control_chars, escape_to_one_line
from saeclamp_server.cli.descriptions import about, labelled
from saeclamp_server.cli.progress import progress_shown
from saeclamp_server.cli.server_client import add_command, warn
from saeclamp_server.cli.steering_flags import saved_as
from saeclamp_server.cli.suggest import check_name, print_suggestion, save
from saeclamp_server.cli.tables import print_facts, print_json, print_table
from saeclamp_server.cli.texts import add_passage, read_passage_flags, read_passages

if TYPE_CHECKING:
    from saeclamp import Client
    from saeclamp.types import Answer, InspectedToken

NUM_EXAMPLES = 5


def register(commands: Any) -> None:
    """Add the command and its subcommands."""
    parser = commands.add_parser(
        "features", help="look for features on a running server", description="Look for features on a running server."
    )
    subcommands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    search = _command(subcommands, "search", "search labels by words and by meaning", _search)
    search.add_argument("query", nargs="?", default="", help="what it is about; without it, features are listed")
    search.add_argument("--sae", action="append", default=[], metavar="NAME", help="only features of this SAE")
    search.add_argument("--green-zone", action="store_true", help="only features whose clamp was calibrated")
    for which in ("min", "max"):
        what = f"{which}imal share of tokens at which the feature is active (default: any)"
        search.add_argument(f"--{which}-density", type=float, metavar="X", help=what)
    search.add_argument(
        "--min-output-score", type=float, metavar="X", help="how well it brings out its own tokens (default: any)"
    )
    _add_limit(search, 10)

    show = _command(subcommands, "show", "show all that is known of a feature", _show)
    show.add_argument("feature", help="<sae>/<name or index>")

    inspect = _command(subcommands, "inspect", "show which features are active in a text", _inspect)
    add_passage(inspect, "the text")
    inspect.add_argument("--feature", action="append", default=[], help="only this feature, token by token")
    _add_aggregate(inspect, "max")
    inspect.add_argument(
        "--order",
        choices=("aggregate", "tf_idf"),
        default="aggregate",
        help="of the features: by that number, or by how unusual it is (default %(default)s)",
    )
    _add_limit(inspect, 20)

    contrast = _command(subcommands, "contrast", "find features that tell two sets of texts apart", _contrast)
    contrast.add_argument(
        "positive",
        help="a file with one text a line, or .jsonl with one JSON string or list of messages a line; - for stdin",
    )
    contrast.add_argument("negative", help="another")
    _add_aggregate(contrast, "mean")
    _add_limit(contrast, 20)

    attribute = _command(subcommands, "attribute", "find which features caused the next token", _attribute)
    add_passage(attribute, "what stands before the token")
    attribute.add_argument("--target", metavar="TOKEN", help="the token, blanks included (default: the likeliest one)")
    attribute.add_argument("--against", metavar="TOKEN", help="another token that could stand there")

    neighbours = _command(subcommands, "neighbours", "find features whose decoder rows point the same way", _neighbours)
    neighbours.add_argument("feature", help="<sae>/<name or index>")
    _add_limit(neighbours, 10)

    suggest = _command(subcommands, "suggest", "propose a small steering for a wish, and try it", _suggest)
    suggest.add_argument("wish", help="such as 'talk about the sea'")
    suggest.add_argument("--candidates", type=int, default=6, metavar="N", help="features to try (default %(default)s)")
    suggest.add_argument("--max-tokens", type=int, default=40, metavar="N", help="of each answer (default %(default)s)")
    suggest.add_argument(
        "--seed", type=int, default=0, metavar="N", help="draws the answers and the controls (default %(default)s)"
    )
    suggest.add_argument("--save", metavar="NAME", help="save the steering, if one is found, as a variant of this name")


def _command(
    commands: Any, name: str, what: str, ask: Callable[[argparse.Namespace, Client], int]
) -> argparse.ArgumentParser:
    parser = add_command(commands, name, what, ask)
    parser.add_argument("--json", action="store_true", help="print the server's answer as JSON")
    return parser


def _add_limit(parser: argparse.ArgumentParser, default: int) -> None:
    parser.add_argument("--limit", type=int, default=default, metavar="N", help=f"how many (default {default})")


def _add_aggregate(parser: argparse.ArgumentParser, default: str) -> None:
    how = "by which a feature's activations in a text become one number (default %(default)s)"
    parser.add_argument("--aggregate", choices=("max", "mean", "frequency"), default=default, help=how)


def _search(args: argparse.Namespace, client: Client) -> int:
    filters = {name: getattr(args, name) for name in ("min_density", "max_density", "min_output_score")}
    given = {name: value for name, value in filters.items() if value is not None}
    found = client.features.search(args.query, sae=args.sae, limit=args.limit, green_zone=args.green_zone, **given)
    rows = [
        (
            hit.feature,
            hit.name or "",
            about(hit),
            " ".join(map(repr, hit.tokens[:3])),
            _number(hit.density),
            _number(hit.max_act),
            _number(hit.output_score),
            _zone(hit.green_zone),
            "" if hit.similarity is None else f"{hit.similarity:.2f}",
        )
        for hit in found.data
    ]
    headers = (
        "feature",
        "name",
        "about",
        "active on",
        "density",
        "max act",
        "output score",
        "green zone",
        "similarity",
    )
    return _print(args, found, headers, rows, [found.note] if found.note else [])


def _show(args: argparse.Namespace, client: Client) -> int:
    from saeclamp.types.token_text import pieces  # here, because `--help` can do without the client

    feature = client.features.get(args.feature)
    if args.json:
        print_json(feature.model_dump(mode="json"))
        return 0
    facts = {"feature": feature.feature, "name": feature.name or "-", "about": feature.description or "-"}
    facts |= {f"label, {label.source}": labelled(label) for label in feature.labels}
    for name in ("density", "max_act", "top_act", "output_score"):
        facts[name] = _number(getattr(feature, name)) or "-"
    facts["green zone"] = _zone(feature.green_zone) or "-"
    facts["best"] = _number(feature.best) or "-"
    facts["promotes"] = " ".join(repr(logit.token) for logit in feature.top_logits or ()) or "-"
    facts["suppresses"] = " ".join(repr(logit.token) for logit in feature.bottom_logits or ()) or "-"
    near = (f"{other.feature} {about(other)} {other.cosine:.2f}" for other in feature.neighbours or ())
    facts["neighbours"] = "; ".join(" ".join(one.split()) for one in near) or "-"
    print_facts({name: escape_control_chars(value) for name, value in facts.items()})
    for example in (feature.examples or ())[:NUM_EXAMPLES]:
        marked = [f"[{text}]" if start <= example.peak < end else text for start, end, text in pieces(example.tokens)]
        print(f"{example.peak_act:8.1f}  {escape_to_one_line(''.join(marked))}")
    return 0


def _inspect(args: argparse.Namespace, client: Client) -> int:
    from saeclamp.types.token_text import pieces  # here, because `--help` can do without the client

    found = client.features.inspect(
        read_passage_flags(args),
        features=tuple(args.feature),
        aggregate=args.aggregate,
        order=args.order,
        limit=args.limit,
    )
    if args.feature and not args.json:
        rows = [
            (
                str(found.tokens[start].position),
                repr(text),
                *(_number(_strongest(found.tokens[start:end], name)) for name in args.feature),
            )
            for start, end, text in pieces(found.tokens)
        ]
        return _print(args, found, ("position", "token", *args.feature), rows, [], found.warnings)
    rows = [
        (one.feature, one.name or "", about(one), _number(one.max), _number(one.mean), _number(one.frequency))
        for one in found.features
    ]
    return _print(args, found, ("feature", "name", "about", "max", "mean", "frequency"), rows, [], found.warnings)


def _contrast(args: argparse.Namespace, client: Client) -> int:
    positive, negative = read_passages(args.positive), read_passages(args.negative)
    with progress_shown() as progress:
        found = client.features.contrast(
            positive, negative, progress=progress, aggregate=args.aggregate, limit=args.limit
        )
    rows = [
        (
            one.feature,
            one.name or "",
            about(one),
            _number(one.positive),
            _number(one.negative),
            f"{one.effect:+.2f}",
            f"{one.p:.2g}",
        )
        for one in found.data
    ]
    headers = ("feature", "name", "about", "positive", "negative", "effect", "p, corrected")
    return _print(args, found, headers, rows, [found.test], found.warnings)


def _attribute(args: argparse.Namespace, client: Client) -> int:
    given = {name: value for name in ("target", "against") if (value := getattr(args, name)) is not None}
    passage = read_passage_flags(args)
    with progress_shown() as progress:
        found = client.features.attribute(passage, progress=progress, **given)
    rows = [
        (
            one.feature,
            one.name or "",
            about(one),
            _number(one.act),
            f"{one.change:+.3f}",
            f"{one.predicted:+.3f}",
        )
        for one in found.data
    ]
    headers = ("feature", "name", "about", "activation", "change without it", "predicted")
    if not args.json:
        print(f"{found.target.text!r}: {found.metric} {found.value:.3f}")
    return _print(args, found, headers, rows, [found.claim], found.warnings)


def _neighbours(args: argparse.Namespace, client: Client) -> int:
    found = client.features.neighbours(args.feature, limit=args.limit)
    rows = [
        (one.feature, one.name or "", about(one), f"{one.cosine:.2f}") for near in found.data for one in near.neighbours
    ]
    return _print(args, found, ("feature", "name", "about", "cosine"), rows, [])


def _suggest(args: argparse.Namespace, client: Client) -> int:
    if args.save is not None:
        check_name(client, args.save)
    options = {"num_candidates": args.candidates, "max_tokens": args.max_tokens, "seed": args.seed}
    print("Trying features on neutral questions; that takes some minutes on a CPU.", file=sys.stderr)
    with progress_shown() as progress:
        found = client.features.suggest(args.wish, progress=progress, **options)
    if args.json:
        print_json(found.model_dump(mode="json"))
    else:
        print_suggestion(found)
    if args.save is not None:
        saved = save(client, args.save, found)
        print(escape_to_one_line(f"{saved_as(saved)} Any client can ask for it as a model."), file=sys.stderr)
    return 0


def _print(
    args: argparse.Namespace,
    answer: Answer,
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str],
    warnings: Sequence[str] = (),
) -> int:
    """Print an answer as a table, or as JSON, which has the warnings in it."""
    if args.json:
        print_json(answer.model_dump(mode="json"))
        return 0
    print_table(headers, [[escape_to_one_line(cell) for cell in row] for row in rows])
    for note in notes:
        print(escape_to_one_line(note))
    warn(warnings)
    return 0


def _strongest(tokens: Sequence[InspectedToken], name: str) -> float | None:
    """Find the strongest activation of a feature among tokens that are shown as one."""
    return max((token.features[name] for token in tokens if name in token.features), key=abs, default=None)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _zone(zone: tuple[float, float] | None) -> str:
    return f"{zone[0]:g} to {zone[1]:g}" if zone else ""
