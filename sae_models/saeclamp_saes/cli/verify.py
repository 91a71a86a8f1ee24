"""`saeclamp sae verify SAE --model MODEL`: whether the SAE fits the model at the sites it claims."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeclamp_saes.cli.output import print_json
from saeclamp_saes.errors import UserError
from saeclamp_saes.lm.load import DTYPES, check_vocabulary, load_model, max_length_of
from saeclamp_saes.lm.text import DEFAULT_TOKENS, read_text, tokenize_sequences

if TYPE_CHECKING:
    from saeclamp_saes.evaluation.report import Verification
    from saeclamp_saes.lm.capture import Progress

FITS, REFUSED, BAD_INPUT = 0, 1, 2
"""Exit codes."""
SHOWN_READINGS = 6
"""Interpretations in the table."""

DESCRIPTION = """\
Run MODEL over a text, reconstruct what it holds where the SAE reads, and compare with other ways to read the same weights:
one layer up or down, another place of the block, another normalisation, bias or orientation.

Exit status: 0 it fits; 1 it does not, and the last line says what to do; 2 it could not be measured."""


def register(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], resolve_model: Callable[[str], str] = str
) -> None:
    """
    Add the command.

    resolve_model: maps a model's name on the command line to the folder or hub id that it stands for
    """
    parser = commands.add_parser(
        "verify",
        help="measure on real tokens whether an SAE fits a model",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sae", metavar="SAE", help="as for `saeclamp serve --sae`: [NAME=]WHAT[?key=value&key=value]")
    parser.add_argument("--model", required=True, help="a local folder, a hub name or the packaged model's name")
    parser.add_argument(
        "--text", type=Path, metavar="FILE", help="UTF-8 text to measure on, instead of the packaged one"
    )
    parser.add_argument(
        "--tokens",
        type=_positive,
        default=DEFAULT_TOKENS,
        metavar="N",
        help=f"how many of the text's tokens to use, at most (default {DEFAULT_TOKENS})",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else, on stdout")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU if there is one")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="of the model; auto is float32 on a CPU (default auto)"
    )
    parser.set_defaults(run=run, resolve_model=resolve_model)


def run(args: argparse.Namespace) -> int:
    """Measure, print, and return the exit code."""
    try:
        result = _measure(args)
    except UserError as exc:
        print(f"saeclamp: {exc}", file=sys.stderr)
        return BAD_INPUT
    if args.json:
        print_json(result.to_json())
    else:
        _print(args.sae, result)
    return FITS if result.fits else REFUSED


def _measure(args: argparse.Namespace) -> Verification:
    from saeclamp_saes.evaluation.verify import verify
    from saeclamp_saes.library.resolve import find_sae
    from saeclamp_saes.loaders import read_sae

    address = find_sae(args.sae)
    text = read_text(args.text)
    sae = read_sae(address.path, address.options)
    model, tokenizer = load_model(args.resolve_model(args.model), args.device, args.dtype)
    sequences = tokenize_sequences(text, tokenizer, args.tokens, max_length_of(model))
    check_vocabulary(model, sequences)
    with _progress_bar() as progress:
        return verify(sae, model, sequences, tokenizer.all_special_ids, progress)


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


@contextmanager
def _progress_bar() -> Iterator[Progress]:
    """Show a bar on stderr, if that is a terminal, gone when it is done."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        tasks: dict[str, Any] = {}

        def report(doing: str, done: int, total: int) -> None:
            if doing not in tasks:
                tasks[doing] = bar.add_task(doing, total=total)
            bar.update(tasks[doing], completed=done)

        yield report


def _print(name: str, result: Verification) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    figures = Table(title=escape(f"{name} at {', '.join(result.writes)}"), show_header=False, title_justify="left")
    for label, value in _rows(result):
        figures.add_row(label, value)
    console.print(figures)
    columns = ("explained variance", "active features", "how the weights are read")
    readings = Table(*columns, title="Readings", title_justify="left")
    for reading in result.readings[:SHOWN_READINGS]:
        readings.add_row(f"{reading.explained_variance:.3f}", f"{reading.l0:.1f}", escape(reading.name))
    console.print(readings)
    for warning in result.warnings:
        console.print(f"Note: {escape(warning)}", soft_wrap=True)
    console.print(f"[bold]{'It fits.' if result.fits else escape(result.verdict)}[/bold]", soft_wrap=True)


def _rows(result: Verification) -> Iterator[tuple[str, str]]:
    loss = result.cross_entropy
    yield "tokens measured", f"{result.num_tokens} ({result.num_sinks} sinks left out)"
    yield "explained variance", f"{result.explained_variance:.3f}"
    yield "that of PCA with as many components", f"{result.pca_explained_variance:.3f}"
    yield "active features a token (L0)", f"{result.l0_mean:.1f} (5 %: {result.l0_p5:.0f}, 95 %: {result.l0_p95:.0f})"
    yield "features never active here", f"{result.dead_share:.1%}"
    yield "features active on over 10 % of tokens", f"{result.dense_share:.1%}"
    yield "cross-entropy, clean", f"{loss.clean:.3f} nats"
    yield "  with the reconstruction", f"{loss.spliced:.3f} (+{loss.spliced - loss.clean:.3f})"
    yield "  with the mean", f"{loss.mean:.3f}, of which recovered {_share(loss.recovered_against_mean)}"
    yield "  with zero", f"{loss.zero:.3f}, of which recovered {_share(loss.recovered_against_zero)}"
    if result.calibrated_threshold is not None:
        yield "threshold with the same L0", f"?threshold={result.calibrated_threshold:.6g}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
