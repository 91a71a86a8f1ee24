"""`saeclamp measure SAE --model MODEL`: metrics and plots of SAEs, on as much text as one likes."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from saeclamp_saes.cli.arg_types import context_arg, count_arg, share_arg
from saeclamp_saes.cli.harvest import FORWARD_TOKENS, report_skipped
from saeclamp_saes.cli.output import print_facts, print_json, print_table
from saeclamp_saes.cli.progress import exit_resumable, progress_bar
from saeclamp_saes.errors import VerificationError
from saeclamp_saes.lm.load import DTYPES, context_length, load_model
from saeclamp_saes.lm.text import SAMPLE

if TYPE_CHECKING:
    from saeclamp_saes.evaluation.eval_data import EvalData
    from saeclamp_saes.evaluation.evaluate import EvaluatedSAE
    from saeclamp_saes.evaluation.measurement import Measurement
    from saeclamp_saes.library.resolve import SAEAddress
    from saeclamp_saes.lm.harvest import ActivationReader

DESCRIPTION = """\
Run MODEL over text, and measure what each SAE reconstructs, how often and how strongly its features are active, and what the
model's loss becomes with the reconstruction, with the mean or with nothing in its place. Several SAEs of one model are
measured on the same tokens, and compared.

Data are text files, or JSON lines (.jsonl, .jsonl.gz) with {"text": ...} or {"messages": [...]}. Stopped, it goes on when it
is started again with the same command."""


def register(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], resolve_model: Callable[[str], str] = str
) -> None:
    """
    Add the command to the command line.

    resolve_model: maps a model's name on the command line to the folder or hub id that it stands for
    """
    parser = commands.add_parser(
        "measure",
        help="measure SAEs: fidelity, sparsity, densities, activations, and plots of them",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("saes", metavar="SAE", nargs="+", help="as for `saeclamp serve --sae`")
    parser.add_argument("--model", required=True, help="a local folder, a hub name or the packaged model's name")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--data", type=Path, nargs="+", metavar="PATH", help="files, or folders of them")
    where.add_argument("--text", type=Path, metavar="FILE", help="one file; by default, the packaged sample")
    parser.add_argument(
        "--held-out",
        type=share_arg,
        metavar="SHARE",
        help="only the documents that `saeclamp train --held-out SHARE` does not train on (there, 0.05 is the default)",
    )
    parser.add_argument(
        "--tokens", type=count_arg, metavar="N", help="at most, the first ones, such as 100k; default: all there are"
    )
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw density.png and activations.png there")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, and nothing else, on stdout")
    parser.add_argument("--context", type=context_arg, metavar="N", help="longest sequence (default 512)")
    parser.add_argument(
        "--forward", type=count_arg, metavar="N", help="tokens the model reads at once (default 1024, on a GPU 16384)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU if there is one")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="of the model; auto is float32 on a CPU (default auto)"
    )
    parser.set_defaults(run=run, resolve_model=resolve_model)


@exit_resumable
def run(args: argparse.Namespace) -> int:
    """Measure, draw, print, and return the exit code. Raises SAEError with a sentence."""
    from saeclamp_saes.evaluation.evaluate import NamedSAE, evaluate, sites_of
    from saeclamp_saes.evaluation.plots import check_matplotlib, write_plots
    from saeclamp_saes.library.resolve import find_sae
    from saeclamp_saes.lm.harvest import ActivationReader
    from saeclamp_saes.loaders import read_sae

    if args.plots:
        check_matplotlib()
    source = _source(args)
    report_skipped(args.data or ())
    addresses = [find_sae(text) for text in args.saes]
    saes = [
        NamedSAE(text, read_sae(address.path, address.options))
        for text, address in zip(args.saes, addresses, strict=True)
    ]
    folder = args.resolve_model(args.model)
    model, tokenizer = load_model(folder, args.device, args.dtype)
    reader = ActivationReader(
        model,
        tokenizer,
        sites_of([sae for _, sae in saes]),
        context=context_length(model, args.context or ActivationReader.context),
        batch_tokens=args.forward or FORWARD_TOKENS[next(model.parameters()).device.type],
    )
    with progress_bar() as report:
        measured = evaluate(saes, reader, source, report, _state(addresses, folder, reader, source))
    plots = write_plots(args.plots, measured.measurements) if args.plots else []
    _print(args, source, measured, plots)
    return 0


def _source(args: argparse.Namespace) -> EvalData:
    from saeclamp_saes.evaluation.eval_data import EvalData
    from saeclamp_saes.lm.documents import data_files

    if args.held_out is not None and not args.data:
        raise VerificationError("--held-out is of training data: name them with --data.")
    return EvalData(data_files(args.data or [args.text or SAMPLE]), args.held_out, args.tokens)


def _state(addresses: Sequence[SAEAddress], model: str, reader: ActivationReader, source: EvalData) -> Path:
    """Return the file that keeps the sums while this runs, named by a hash of all that they depend on."""
    from saeclamp_saes.library.resolve import entry_hash
    from saeclamp_saes.library.user_library import library_folder
    from saeclamp_saes.lm.provenance import data_hashes, model_hashes
    from saeclamp_saes.loaders import summarize

    parameter = next(reader.model.parameters())
    depends_on = {
        "saes": [entry_hash(summarize(path, options).files, options) for _, path, options in addresses],
        "model": model_hashes(model),
        "data": list(data_hashes(source.files).items()),  # in their order, which sorted keys would not keep
        "how": [source.held_out, source.tokens, reader.context, reader.batch_tokens],
        "where": [str(parameter.device), str(parameter.dtype), version("saeclamp")],
    }
    digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
    return library_folder().parent / "unfinished" / f"measure-{digest[:16]}.safetensors"


def _print(args: argparse.Namespace, source: EvalData, measured: EvaluatedSAE, plots: Sequence[Path]) -> None:
    results = measured.measurements
    if args.json:
        data = {
            "files": [str(path) for path in source.files],
            "held_out_share": source.held_out,
            "documents": measured.survey.num_documents,
            "tokens": measured.survey.num_tokens,
        }
        print_json({"data": data, "saes": [one.to_json() for one in results], "plots": list(map(str, plots))})
        return
    num = measured.survey.num_documents
    on = "the packaged sample" if source.files == [SAMPLE] else f"{num:,} document{'s' * (num != 1)}"
    on += f" held out with {source.held_out:g}" if source.held_out is not None else ""
    if len(results) == 1:
        print_facts({**_facts(results[0], on), **({"plots": ", ".join(map(str, plots))} if plots else {})})
        return
    rows = list(map(_row, results))
    print_table(list(rows[0]), [list(row.values()) for row in rows])
    few = results[0].verification.num_tokens
    print(f"Measured on {on}; cross-entropies, and whether it fits, on {few:,} tokens of them.", *plots, sep="\n")


def _facts(one: Measurement, on: str) -> dict[str, str]:
    check, loss, acts = one.verification, one.verification.cross_entropy, one.activations
    values = {name: f"{value:.4g}" for name, value in acts.percentiles.items()}
    return {
        "SAE": f"{one.name} at {', '.join(one.writes)}, {one.d_sae:,} features",
        "tokens measured": f"{one.num_tokens:,} of {on} ({one.num_sinks:,} sinks left out)",
        "explained variance": _figure(one.explained_variance),
        "that of PCA with as many components": _figure(one.pca_explained_variance),
        "active features a token (L0)": f"{one.l0_mean:.1f} (5 %: {one.l0_p5:.0f}, 95 %: {one.l0_p95:.0f})",
        "features never active here": f"{one.densities.num_never:,} ({one.dead_share:.1%})",
        "features active on over 1 % of tokens": f"{one.densities.over_1_percent_share:.1%}",
        "features active on over 10 % of tokens": f"{one.densities.over_10_percent_share:.1%}",
        "median density of those ever active": _figure(one.densities.median, ".3%"),
        "positive activations": f"median {values['50']} (5 %: {values['5']}, 95 %: {values['95']}, 99.9 %: "
        f"{values['99.9']}), largest {acts.largest:.4g}"
        if values
        else "none",
        f"cross-entropy on {check.num_tokens:,} of the tokens, clean": f"{loss.clean:.3f} nats",
        "  with the reconstruction": f"{loss.spliced:.3f} ({loss.spliced - loss.clean:+.3f})",
        "  with the mean": f"{loss.mean:.3f}, of which recovered {_figure(loss.recovered_against_mean, '.1%')}",
        "  with zero": f"{loss.zero:.3f}, of which recovered {_figure(loss.recovered_against_zero, '.1%')}",
        "verdict": "It fits." if check.fits else check.verdict,
        **({"note": " ".join(check.warnings)} if check.warnings else {}),
    }


def _row(one: Measurement) -> dict[str, str]:
    loss = one.verification.cross_entropy
    return {
        "SAE": one.name,
        "AT": ", ".join(one.writes),
        "FEATURES": f"{one.d_sae:,}",
        "TOKENS": f"{one.num_tokens:,}",
        "EV": _figure(one.explained_variance),
        "PCA": _figure(one.pca_explained_variance),
        "L0": f"{one.l0_mean:.1f}",
        "DEAD": f"{one.dead_share:.1%}",
        ">1%": f"{one.densities.over_1_percent_share:.1%}",
        ">10%": f"{one.densities.over_10_percent_share:.1%}",
        "dCE": f"{loss.spliced - loss.clean:+.3f}",
        "CE(MEAN)": _figure(loss.recovered_against_mean, ".1%"),
        "CE(ZERO)": _figure(loss.recovered_against_zero, ".1%"),
        "FITS": "yes" if one.verification.fits else "NO",
    }


def _figure(value: float | None, format: str = ".3f") -> str:
    return "-" if value is None else f"{value:{format}}"
