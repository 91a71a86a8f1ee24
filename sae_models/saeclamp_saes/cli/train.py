"""`saeclamp train --model MODEL --layer L --data FILES --out FOLDER`: an SAE of one's own."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from saeclamp_saes.cli.arg_types import count_arg, layer_arg, positive_arg, seed_arg, share_arg
from saeclamp_saes.cli.harvest import DATA, add_reading, drop_unset, open_input
from saeclamp_saes.cli.output import print_facts, print_json
from saeclamp_saes.cli.progress import exit_resumable, progress_bar
from saeclamp_saes.errors import TrainingError
from saeclamp_saes.evaluation.report import LEAST
from saeclamp_saes.training.config import FEATURES_PER_WIDTH, NAMES, TrainingConfig

if TYPE_CHECKING:
    from saeclamp_saes.progress import ProgressCallback
    from saeclamp_saes.training.export import ExportedSAE
    from saeclamp_saes.training.run_settings import RunSettings

DESCRIPTION = f"""\
Run MODEL over the data, keep what its residual stream holds behind layer L, train an SAE on it, and write FOLDER/sae, which
`saeclamp serve MODEL --sae FOLDER/sae` serves.

{DATA}"""


def register(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], resolve_model: Callable[[str], str] = str
) -> None:
    """
    Add the command to the command line.

    resolve_model: maps a model's name on the command line to the folder or hub id that it stands for
    """
    parser = commands.add_parser(
        "train",
        help="train an SAE on a model's residual stream",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", help="a local folder, a hub name or the packaged model's name")
    parser.add_argument("--layer", required=True, type=layer_arg, metavar="L", help="counted from 0")
    parser.add_argument("--data", type=Path, nargs="+", metavar="PATH", help="files, or folders of them")
    parser.add_argument(
        "--vectors",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        help="of `saeclamp harvest`, in place of --model and --data; one that is named twice counts twice",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="new, or of a run to go on with")
    _add_training_config(parser)
    add_reading(parser)
    parser.add_argument("--pool", type=count_arg, metavar="N", help="vectors kept on disk and shuffled (default 1M)")
    parser.add_argument(
        "--save-dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of the SAE (default float32)",
    )
    parser.add_argument("--tensorboard", action="store_true", help="log for TensorBoard too, beside log.csv")
    parser.add_argument("--keep-vectors", action="store_true", help="do not delete the harvested vectors at the end")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, and nothing else, on stdout")
    parser.set_defaults(run=run, resolve_model=resolve_model)


def _add_training_config(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is trained")
    group.add_argument(
        "--architecture", choices=NAMES, default=TrainingConfig.architecture, help="default: %(default)s"
    )
    group.add_argument(
        "--features", type=count_arg, metavar="N", help=f"default: {FEATURES_PER_WIDTH} times the model's width"
    )
    group.add_argument(
        "--k",
        type=count_arg,
        default=TrainingConfig.k,
        metavar="K",
        help="active features a token, on average (default %(default)s)",
    )
    group.add_argument(
        "--l1",
        type=positive_arg,
        default=TrainingConfig.l1,
        help="weight of relu's penalty, in place of k (default %(default)s)",
    )
    group.add_argument(
        "--smallest-group",
        type=count_arg,
        metavar="N",
        help="features in matryoshka's smallest group; each is twice as large as the one before (default: 1/32 of all)",
    )
    group.add_argument(
        "--tokens", type=count_arg, default=TrainingConfig.tokens, metavar="N", help="such as 500k or 25M (default 5M)"
    )
    group.add_argument(
        "--batch", type=count_arg, default=TrainingConfig.batch, metavar="N", help="tokens (default %(default)s)"
    )
    group.add_argument(
        "--lr", type=positive_arg, help="learning rate; default: the architecture's own, higher in a short run"
    )
    group.add_argument(
        "--annealed",
        type=share_arg,
        default=TrainingConfig.annealed,
        metavar="SHARE",
        help="of the steps, over which k falls from 4 k",
    )
    group.add_argument("--seed", type=seed_arg, default=TrainingConfig.seed, help="default %(default)s")


@exit_resumable
def run(args: argparse.Namespace) -> int:
    """Train, print the metrics, and return the exit code. Raises SAEError with a sentence."""
    train = _train_on if args.vectors else _train
    with progress_bar() as report:
        exported = train(args, report)
    _print(args, exported)
    return 0


def _train(args: argparse.Namespace, report: ProgressCallback) -> ExportedSAE:
    from saeclamp_saes.lm.harvest import d_in_of
    from saeclamp_saes.training.run import train

    if not (args.model and args.data):
        raise TrainingError("Give --model and --data, or --vectors that `saeclamp harvest` kept.")
    wanted, reader = open_input(args, [args.layer], args.tokens)
    return train(_settings(args), _training_config(args, d_in_of(reader)), wanted, reader, report)


def _train_on(args: argparse.Namespace, report: ProgressCallback) -> ExportedSAE:
    import torch

    from saeclamp_saes.sites import Site
    from saeclamp_saes.training.activations_store import ActivationsStore
    from saeclamp_saes.training.run import train_from

    for name in ("model", "data", "context", "forward", "held_out", "store", "dtype", "pool"):
        if getattr(args, name) is not None:
            raise TrainingError(f"--{name.replace('_', '-')} was settled when --vectors were harvested: leave it out.")
    stores = [ActivationsStore.open(folder) for folder in args.vectors]
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    config = _training_config(args, stores[0].width)
    return train_from(_settings(args), config, stores, Site("resid_post", args.layer), device, report)


def _training_config(args: argparse.Namespace, width: int) -> TrainingConfig:
    names = ("architecture", "k", "tokens", "batch", "lr", "l1", "smallest_group", "seed", "annealed")
    return TrainingConfig(
        d_sae=args.features or FEATURES_PER_WIDTH * width, **{name: getattr(args, name) for name in names}
    )


def _settings(args: argparse.Namespace) -> RunSettings:
    from saeclamp_saes.training.run_settings import RunSettings

    return RunSettings(
        out=args.out,
        dtype=args.save_dtype,
        command=shlex.join(["saeclamp", *sys.argv[1:]]),
        tensorboard=args.tensorboard,
        keep_vectors=args.keep_vectors,
        **drop_unset({"pool_tokens": args.pool}),
    )


def _print(args: argparse.Namespace, exported: ExportedSAE) -> None:
    figures = exported.figures
    if args.json:
        print_json({"path": str(exported.folder), **vars(figures), "rounding_error": exported.rounding_error})
        return
    print_facts(
        {
            "written": str(exported.folder),
            "held-out tokens": f"{figures.num_tokens:,}, sinks left out",
            "explained variance": f"{figures.explained_variance:.3f}",
            "that of PCA with as many components": f"{figures.pca_explained_variance:.3f}",
            "active features a token (L0)": f"{figures.l0:.1f}",
            "features never active there": f"{figures.dead_share:.1%}",
            "features active on over 10 % of tokens": f"{figures.dense_share:.1%}",
            f"error of rounding to {args.save_dtype}": f"{exported.rounding_error:.2g} of a reconstruction's length",
        }
    )
    model = args.model or exported.model_name
    if figures.explained_variance < LEAST:
        print(
            f"saeclamp: it explains less than {LEAST:g} of the variance, so `serve` will take it for one of another model "
            "and refuse it, unless --allow-unverified-sae is given: train it on more tokens.",
            file=sys.stderr,
        )
    print(f"saeclamp: serve it with: saeclamp serve {model} --sae {_named(exported.folder)}", file=sys.stderr)


def _named(folder: Path) -> str:
    """Return the argument of `--sae`, with a name after the run: every run's SAE lies in a folder called sae."""
    name = folder.parent.name
    return shlex.quote(f"{name}={folder}" if re.fullmatch(r"[\w.-]+", name) else str(folder))
