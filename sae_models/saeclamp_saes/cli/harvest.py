"""`saeclamp harvest --model MODEL --layers L L --data FILES --out FOLDER`: vectors to train several SAEs on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeclamp_saes.cli.arg_types import context_arg, count_arg, layer_arg, share_arg
from saeclamp_saes.cli.output import print_facts, print_json
from saeclamp_saes.cli.progress import exit_resumable, progress_bar
from saeclamp_saes.errors import TrainingError
from saeclamp_saes.lm.load import DTYPES, context_length, load_model

if TYPE_CHECKING:
    from saeclamp_saes.lm.harvest import ActivationReader
    from saeclamp_saes.training.activations_store import ActivationsStore
    from saeclamp_saes.training.harvest_config import HarvestConfig

DATA = """\
Data are text files, or JSON lines (.jsonl, .jsonl.gz) with {"text": ...} or {"messages": [...]}; conversations are formatted
with the model's chat template. Stopped, it goes on when it is started again with the same command."""
DESCRIPTION = f"""\
Run MODEL over the data and keep what its residual stream holds behind the layers, for `saeclamp train --vectors FOLDER`:
the model reads once, however many SAEs are trained.

{DATA}"""
FORWARD_TOKENS = {"cpu": 1024, "cuda": 16_384}
"""Tokens that the model reads at once, by device. On a CPU few are faster, because they stay in the cache."""
NAMED = 5
"""Skipped files that are listed by name."""


def register(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], resolve_model: Callable[[str], str] = str
) -> None:
    """
    Add the command to the command line.

    resolve_model: maps a model's name on the command line to the folder or hub id that it stands for
    """
    parser = commands.add_parser(
        "harvest",
        help="keep a model's vectors to train several SAEs on",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="a local folder, a hub name or the packaged model's name")
    parser.add_argument(
        "--layers", required=True, type=layer_arg, nargs="+", metavar="L", help="residual streams behind them; from 0"
    )
    parser.add_argument("--data", required=True, type=Path, nargs="+", metavar="PATH", help="files, or folders of them")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="new, or of a harvest to go on with")
    parser.add_argument("--tokens", type=count_arg, default=5_000_000, metavar="N", help="to train on (default 5M)")
    add_reading(parser)
    parser.add_argument("--json", action="store_true", help="print what was kept as JSON, and nothing else, on stdout")
    parser.set_defaults(run=run, resolve_model=resolve_model)


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how a model reads data."""
    group = parser.add_argument_group("how the data are read")
    group.add_argument("--context", type=context_arg, metavar="N", help="longest sequence (default 512)")
    group.add_argument(
        "--forward", type=count_arg, metavar="N", help="tokens the model reads at once (default 1024, on a GPU 16384)"
    )
    group.add_argument(
        "--held-out", type=share_arg, metavar="SHARE", help="of the documents, to measure on (default 0.05)"
    )
    group.add_argument(
        "--store", choices=("bfloat16", "float16"), help="how vectors are kept on disk (default bfloat16)"
    )
    group.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU if there is one")
    group.add_argument("--dtype", choices=DTYPES, help="of the model; default: float32 on a CPU, else its own")


def open_input(args: argparse.Namespace, layers: Sequence[int], tokens: int) -> tuple[HarvestConfig, ActivationReader]:
    """Load the model, and make the harvest config and a reader. Raises SAEError with a sentence."""
    from saeclamp_saes.lm.documents import check_sides, data_files
    from saeclamp_saes.lm.harvest import ActivationReader
    from saeclamp_saes.lm.provenance import model_hashes
    from saeclamp_saes.sites import Site
    from saeclamp_saes.training.harvest_config import HarvestConfig

    if twice := [layer for layer in layers if list(layers).count(layer) > 1]:
        raise TrainingError(f"Layer {twice[0]} is named twice.")
    # that they are there and can be told apart, before the model takes its time
    check_sides(data_files(args.data), HarvestConfig.held_out_share if args.held_out is None else args.held_out)
    report_skipped(args.data)
    folder = args.resolve_model(args.model)
    model, tokenizer = load_model(folder, args.device, args.dtype or "auto")
    wanted = HarvestConfig(
        data=tuple(args.data),
        model_name=Path(args.model).name if Path(args.model).is_dir() else args.model,
        model_sha256=model_hashes(folder),
        tokens=tokens,
        **drop_unset({"held_out_share": args.held_out, "store": args.store}),
    )
    device = next(model.parameters()).device.type
    reader = ActivationReader(
        model,
        tokenizer,
        tuple(Site("resid_post", layer) for layer in layers),
        context=context_length(model, args.context or ActivationReader.context),
        batch_tokens=args.forward or FORWARD_TOKENS[device],
    )
    return wanted, reader


def report_skipped(data: Sequence[Path]) -> None:
    """List on stderr the files in the named folders that are not read."""
    from saeclamp_saes.lm.documents import list_skipped

    if names := list(map(str, list_skipped(data))):
        more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
        print(f"saeclamp: not read, because it is no data: {', '.join(names[:NAMED])}{more}.", file=sys.stderr)


def drop_unset(options: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out options that the user did not give."""
    return {name: value for name, value in options.items() if value is not None}


@exit_resumable
def run(args: argparse.Namespace) -> int:
    """Harvest, print what was kept, and return the exit code. Raises SAEError with a sentence."""
    from saeclamp_saes.training.activations_store import write_store

    wanted, reader = open_input(args, args.layers, args.tokens)
    with progress_bar() as report:
        store = write_store(args.out, wanted, reader, report)
    _print(args, store)
    return 0


def _print(args: argparse.Namespace, store: ActivationsStore) -> None:
    facts = {"sites": list(map(str, store.sites)), "tokens": store.num_rows, "held_out_tokens": store.num_held_out}
    if args.json:
        print_json({"path": str(store.folder), **facts})
        return
    print_facts(
        {
            "written": str(store.folder),
            "places": ", ".join(map(str, store.sites)),
            "tokens to train on": f"{store.num_rows:,}",
            "held-out tokens": f"{store.num_held_out:,}",
        }
    )
    print(f"saeclamp: train with: saeclamp train --vectors {store.folder} --layer {args.layers[0]}", file=sys.stderr)
