"""`saeclamp label SAE --model MODEL --data FILES`: labels for every feature of an SAE."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeclamp_saes.cli.arg_types import context_arg, count_arg
from saeclamp_saes.cli.harvest import DATA, FORWARD_TOKENS, drop_unset, report_skipped
from saeclamp_saes.cli.output import print_facts, print_json, print_table
from saeclamp_saes.cli.progress import exit_resumable, progress_bar
from saeclamp_saes.lm.load import DTYPES, context_length, load_model

if TYPE_CHECKING:
    from saeclamp_saes.labelling.table import LabelTable
    from saeclamp_saes.lm.harvest import ActivationReader
    from saeclamp_saes.sae import SAE

NUM_BEST = 5
DESCRIPTION = f"""\
Run MODEL over the data, note on which tokens every feature of the SAE is active, and write one row a feature: its largest
activation, examples, the tokens it promotes, features like it, a label that counting can check, and how well amplifying it
brings out its own tokens. `docs/labels.md` says what each column means.

{DATA}"""


def register(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], resolve_model: Callable[[str], str] = str
) -> None:
    """
    Add the command to the command line.

    resolve_model: maps a model's name on the command line to the folder or hub id that it stands for
    """
    parser = commands.add_parser(
        "label",
        help="label an SAE's features",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sae", metavar="SAE", help="as for `saeclamp serve --sae`: [NAME=]WHAT[?key=value&key=value]")
    parser.add_argument("--model", required=True, help="a local folder, a hub name or the packaged model's name")
    parser.add_argument(
        "--data", type=Path, nargs="+", metavar="PATH", help="files, or folders of them; default: a small packaged text"
    )
    parser.add_argument("--tokens", type=count_arg, metavar="N", help="to read, at most: such as 500k (default 1M)")
    parser.add_argument(
        "--quote",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="those of the data that examples may be taken from, where others may not be published; default: all",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: labels.parquet, beside the SAE's weights")
    parser.add_argument("--context", type=context_arg, metavar="N", help="longest sequence (default 512)")
    parser.add_argument(
        "--forward", type=count_arg, metavar="N", help="tokens the model reads at once (default 1024, on a GPU 16384)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU if there is one")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="of the model; auto is float32 on a CPU (default auto)"
    )
    parser.add_argument("--json", action="store_true", help="print a summary as JSON, and nothing else, on stdout")
    parser.set_defaults(run=run, resolve_model=resolve_model)


@exit_resumable
def run(args: argparse.Namespace) -> int:
    """Label, print a summary, and return the exit code. Raises SAEError with a sentence."""
    from saeclamp_saes.labelling.run import LabelSettings, check, run_labelling
    from saeclamp_saes.labelling.table import labels_path
    from saeclamp_saes.library.resolve import find_sae
    from saeclamp_saes.lm.documents import data_files
    from saeclamp_saes.lm.provenance import model_hashes
    from saeclamp_saes.loaders import read_sae

    address = find_sae(args.sae)
    data_files(args.data or ())
    report_skipped(args.data or ())
    sae = read_sae(address.path, address.options)
    folder = args.resolve_model(args.model)
    settings = LabelSettings(
        out=args.out or labels_path(address.path),
        sae_name=address.name,
        model_name=Path(args.model).name if Path(args.model).is_dir() else args.model,
        model_sha256={},
        **drop_unset(
            {
                "data": args.data and tuple(args.data),
                "tokens": args.tokens,
                "quote": args.quote and tuple(args.quote),
            }
        ),
    )
    check(settings, sae)
    reader = _reader(args, folder, sae)
    settings = replace(settings, model_sha256=model_hashes(folder))  # which loading may only now have downloaded
    with progress_bar() as report:
        labels = run_labelling(settings, sae, reader, report)
    _print(args, settings.out, _summary(labels))
    return 0


def _reader(args: argparse.Namespace, folder: str, sae: SAE) -> ActivationReader:
    from saeclamp_saes.lm.harvest import ActivationReader

    model, tokenizer = load_model(folder, args.device, args.dtype)
    return ActivationReader(
        model,
        tokenizer,
        sae.reads,
        context=context_length(model, args.context or ActivationReader.context),
        batch_tokens=args.forward or FORWARD_TOKENS[next(model.parameters()).device.type],
    )


def _summary(labels: LabelTable) -> dict[str, Any]:
    """Summarise the labels in a few numbers; JSON-able."""
    columns = {name: labels.table[name].to_pylist() for name in ("kind", "density", "num_active", "output_score")}
    scores = columns["output_score"]
    best = sorted((index for index, score in enumerate(scores) if score is not None), key=lambda index: -scores[index])
    return {
        "num_features": len(labels),
        "num_tokens": labels.info.num_tokens,
        "kinds": {kind: columns["kind"].count(kind) for kind in ("input", "say", "output", "none")},
        "dead": columns["num_active"].count(0),
        "median_density": sorted(columns["density"])[len(labels) // 2],
        "best_by_output_score": [
            {
                "index": row.index,
                "output_score": row.output_score,
                "output_label": row.output_label,
                "kind": row.kind,
                "label": row.label,
                "max_act": row.max_act,
            }
            for row in map(labels.__getitem__, best[:NUM_BEST])
        ],
        "warnings": list(labels.info.warnings),
    }


def _print(args: argparse.Namespace, out: Path, summary: dict[str, Any]) -> None:
    if args.json:
        print_json({"path": str(out), **summary})
        return
    num = summary["num_features"]
    print_facts(
        {
            "written": str(out),
            "tokens": f"{summary['num_tokens']:,}, sinks left out",
            **{f"labelled {kind}": f"{many:,} of {num:,}" for kind, many in summary["kinds"].items()},
            "never active here": f"{summary['dead']:,}",
            "median density": f"{summary['median_density']:.3%}",
        }
    )
    if best := summary["best_by_output_score"]:
        print_table(
            ("feature", "output score", "what it promotes", "label"),
            [
                (str(row["index"]), f"{row['output_score']:.3f}", row["output_label"] or "-", row["label"] or "-")
                for row in best
            ],
        )
    for warning in summary["warnings"]:
        print(f"saeclamp: {warning}", file=sys.stderr)
