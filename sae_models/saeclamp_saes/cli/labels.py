"""`saeclamp labels import-neuronpedia | explain`: explanations in prose, beside the labels that were counted."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeclamp_saes.cli.arg_types import count_arg, positive_arg
from saeclamp_saes.cli.output import print_facts, print_json
from saeclamp_saes.cli.progress import exit_resumable, progress_bar
from saeclamp_saes.errors import LabelError

if TYPE_CHECKING:
    from saeclamp_saes.labelling.explain.run import ExplainResult

LABELS = "an SAE, whose labels lie beside it; or a file that `saeclamp label` wrote"
KEY = "OPENAI_API_KEY"
MOST_NUMBERS = 10_000_000
"""Features in a range, at most; more are a slip of the finger."""

IMPORT = """\
Put labels that Neuronpedia has of this very SAE into its file of labels. Files are its exports, such as
explanations/batch-0.jsonl.gz, or folders of them. An export does not say of which weights it is, so make sure that it is of
these: same SAE, same feature order. Of several explanations of a feature the best by score is taken, or else the newest."""

EXPLAIN = """\
Have a language model explain features in prose, behind any endpoint that speaks OpenAI's chat completions, and score each
explanation by detection: the model reads it and tells texts in which the feature is active from others. None of these were
shown when it explained. The score is balanced accuracy: 0.5 is chance.

Every feature is kept as soon as it is finished. Stopped, it goes on when it is started again with the same command."""


def register(commands: Any) -> None:
    """Add the command and its subcommands to the command line."""
    parser = commands.add_parser(
        "labels", help="explain features in prose, or import explanations", description="Explain an SAE's features."
    )
    subcommands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _register_import(subcommands)
    _register_explain(subcommands)


def _register_import(commands: Any) -> None:
    parser = commands.add_parser(
        "import-neuronpedia",
        help="import explanations that Neuronpedia exported",
        description=IMPORT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="JSON lines, gzipped or not; or a folder")
    parser.add_argument("--into", required=True, metavar="LABELS", help=LABELS)
    parser.add_argument(
        "--source", metavar="MODEL/ID", help="only lines of this SAE, such as gemma-2-2b/20-gemmascope-res-16k"
    )
    parser.add_argument("--score-type", metavar="TYPE", help="the scores to compare, where there are several types")
    _add_replace(parser)
    parser.set_defaults(run=_import)


def _register_explain(commands: Any) -> None:
    parser = commands.add_parser(
        "explain",
        help="have a language model explain features, and score that",
        description=EXPLAIN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("labels", metavar="LABELS", help=LABELS)
    parser.add_argument("--base-url", required=True, metavar="URL", help="such as http://127.0.0.1:8000/v1")
    parser.add_argument("--model", required=True, help="as the endpoint calls it")
    parser.add_argument(
        "--api-key-env", default=KEY, metavar="NAME", help=f"environment variable that holds the key (default {KEY})"
    )
    parser.add_argument(
        "--features", type=_indices, metavar="LIST", help="such as 1,2,10-20; default: all, by output score"
    )
    parser.add_argument("--most", type=count_arg, metavar="N", help="explain at most so many of them, the first ones")
    parser.add_argument(
        "--concurrency", type=count_arg, default=8, metavar="N", help="features at a time (default %(default)s)"
    )
    parser.add_argument(
        "--timeout", type=positive_arg, default=120.0, metavar="S", help="seconds for an answer (default %(default)g)"
    )
    parser.add_argument(
        "--retries", type=_whole, default=6, metavar="N", help="of a request that failed (default %(default)s)"
    )
    parser.add_argument(
        "--structured",
        action="store_true",
        help="have the endpoint hold answers to a JSON schema (response_format), where it can: for small models",
    )
    parser.add_argument(
        "--body",
        type=_object,
        default={},
        metavar="JSON",
        help='of every request, such as \'{"max_tokens": null, "max_completion_tokens": 4000, "temperature": 1}\'',
    )
    _add_replace(parser)
    parser.set_defaults(run=_explain)


def _add_replace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--replace", action="store_true", help="explanations that there are; otherwise they are kept")
    parser.add_argument("--json", action="store_true", help="print a summary as JSON, and nothing else, on stdout")


def _import(args: argparse.Namespace) -> int:
    from saeclamp_saes.labelling.neuronpedia import read_exports
    from saeclamp_saes.labelling.table import LabelTable

    path = _labels_file(args.into)
    labels = LabelTable.read(path)
    found = read_exports(args.files, len(labels), args.source, args.score_type)
    held = labels.explanations()
    new = {index: explanation for index, explanation in found.explanations.items() if args.replace or index not in held}
    labels.with_explanations(new).write(path)
    summary = {
        "path": str(path),
        "from": found.place,
        "lines": found.num_lines,
        "empty": found.num_empty,
        "imported": len(new),
        "kept": len(found.explanations) - len(new),
        "features_with_several": found.num_choices,
        "chosen_by": found.chosen_by,
    }
    if args.json:
        print_json(summary)
        return 0
    print_facts(
        {
            "written": str(path),
            "labels of": f"{found.place}, {found.num_lines:,} lines, {found.num_empty:,} of them empty",
            "imported": f"{len(new):,} of {len(labels):,} features",
            "kept as they were": f"{summary['kept']:,}",
            "of several explanations": f"{found.chosen_by} ({found.num_choices:,} features)",
        }
    )
    print(
        f"saeclamp: make sure that {found.place} is this SAE: an export does not say of which weights it is.",
        file=sys.stderr,
    )
    return 0


@exit_resumable
def _explain(args: argparse.Namespace) -> int:
    from saeclamp_saes.labelling.explain.client import ExplainEndpoint
    from saeclamp_saes.labelling.explain.run import ExplainRequest, explain

    path = _labels_file(args.labels)
    endpoint = ExplainEndpoint(
        base_url=args.base_url,
        model=args.model,
        api_key=_key(args.api_key_env),
        timeout=args.timeout,
        retries=args.retries,
        structured=args.structured,
        body=args.body,
    )
    request = ExplainRequest(path, endpoint, args.features, args.most, args.concurrency, args.replace)
    with progress_bar() as report:
        outcome = explain(request, report)
    _print(args, path, outcome)
    return 1 if outcome.failed else 0


def _print(args: argparse.Namespace, path: Path, outcome: ExplainResult) -> None:
    if args.json:
        print_json({"path": str(path), **asdict(outcome)})
    else:
        usage, score = outcome.usage, outcome.mean_score
        unsaid = f", and {usage.uncounted:,} answers that did not say" if usage.uncounted else ""
        print_facts(
            {
                "written": str(path),
                "explained": f"{outcome.explained:,} now, {outcome.before:,} before",
                "mean score (balanced accuracy)": "-" if score is None else f"{score:.3f}",
                "kept as they were": f"{outcome.kept:,}",
                "too few examples": f"{len(outcome.too_few_examples):,}",
                "not explained": f"{len(outcome.failed):,}",
                "tokens used": f"{usage.prompt_tokens:,} read and {usage.completion_tokens:,} written in "
                f"{usage.requests:,} answers{unsaid}",
            }
        )
    for index, reason in list(outcome.failed.items())[:3]:
        print(f"saeclamp: feature {index} was not explained: {reason}", file=sys.stderr)
    if outcome.failed:
        print("saeclamp: the same command tries these again.", file=sys.stderr)


def _key(name: str) -> str | None:
    """Read the API key from the environment; it is shown nowhere. Raises LabelError."""
    key = os.environ.get(name, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise LabelError(f"What the environment variable {name} holds is no key.")
    return key or None


def _labels_file(text: str) -> Path:
    from saeclamp_saes.labelling.table import labels_path
    from saeclamp_saes.library.resolve import find_sae

    path = Path(text)
    return path if path.suffix == ".parquet" else labels_path(find_sae(text).path)


def _indices(text: str) -> list[int]:
    found: dict[int, None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", part.strip())
        if not match:
            raise argparse.ArgumentTypeError(f"{part!r} is no feature or range of features, as in 1,2,10-20")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first > MOST_NUMBERS:
            raise argparse.ArgumentTypeError(f"{part!r} is no range of features")
        found |= dict.fromkeys(range(first, last + 1))
    return list(found)


def _whole(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,3}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 999")
    return int(text)


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object")
    return value
