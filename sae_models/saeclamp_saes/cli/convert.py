"""`saeclamp sae convert SRC DST`: a checkpoint, pickled or not, into safetensors that can be served."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeclamp_saes.errors import SAELibraryError, UserError

if TYPE_CHECKING:
    from saeclamp_saes.conversion import Conversion

DESCRIPTION = """\
Read a checkpoint of any family in a process of its own, which can run no code of the file's and has limits, and write it
with all its factors folded as DST/cfg.json and DST/sae_weights.safetensors. DST must not exist."""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser of `saeclamp sae`."""
    parser = commands.add_parser(
        "convert",
        help="convert a pickled checkpoint, once, into files that can be served",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SRC", help="a file or folder; ?key=value options may follow")
    parser.add_argument("destination", metavar="DST", type=Path, help="the folder to write")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert, print what was written, and return the exit code."""
    from saeclamp_saes.conversion import convert
    from saeclamp_saes.library.reference import parse_reference

    before = signal.signal(signal.SIGTERM, _stop)  # by itself it would leave the sandbox and its folder behind
    try:
        found = parse_reference(args.source)
        if found.path is None:
            raise SAELibraryError(
                f"{args.source} is not on this machine: `saeclamp sae add` downloads and converts it."
            )
        conversion = convert(found.path, args.destination, found.options)
    except UserError as exc:
        print(f"saeclamp: {exc}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)
    _print(conversion)
    return 0


def _stop(number: int, frame: Any) -> None:
    sys.exit(128 + number)


def _print(conversion: Conversion) -> None:
    summary = conversion.summary
    sites = [", ".join(map(str, sites)) for sites in dict.fromkeys((summary.reads, summary.writes))]
    width = f"{summary.d_in} x {summary.d_sae}"
    facts = {
        "written": f"{conversion.path} ({conversion.num_bytes / 2**20:,.1f} MiB)",
        "read as": conversion.read_as,
        "kind": f"{summary.kind}, {summary.architecture}",
        "site": " -> ".join(sites),
        "d_in x d_sae": width if summary.d_out == summary.d_in else f"{width} -> {summary.d_out}",
        "sha256": conversion.sha256,
    }
    if summary.approximation:
        facts["approximate"] = summary.approximation
    for name, value in facts.items():
        print(f"{name + ':':14} {value}")
