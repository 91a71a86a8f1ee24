"""The command line: our few flags; every other one is vLLM's."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from importlib.metadata import version

from saeclamp_server.packaged_model import PACKAGED_MODEL

DESCRIPTION = f"""\
Serve MODEL with SAE features that every request can clamp.

MODEL is a local folder, a hub name, or '{PACKAGED_MODEL}' for the packaged model. Any flag of `vllm serve` may follow,
such as --port 8001, --max-model-len 4096 or --enforce-eager (see `vllm serve --help`)."""


@dataclass(frozen=True)
class ServeOptions:
    """What was asked for on the command line."""

    model: str
    saes: tuple[str, ...]
    vllm_argv: tuple[str, ...]
    """Passed to vLLM's own parser."""


def parse(argv: list[str]) -> ServeOptions:
    """Split the command line. Exits with status 2 and a usage message when it is wrong."""
    parser = argparse.ArgumentParser("saeclamp", description="Steer language models with sparse-autoencoder features.")
    parser.add_argument("--version", action="version", version=f"saeclamp {version('saeclamp')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="serve a model with SAEs",
        usage="saeclamp serve MODEL [--sae NAME_OR_FOLDER]... [any flag of vllm serve]",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    serve.add_argument("model", metavar="MODEL")
    serve.add_argument(
        "--sae",
        action="append",
        metavar="NAME_OR_FOLDER",
        help="'bundled', a folder in SAELens layout, or NAME=FOLDER; repeat for several",
    )
    known, vllm_argv = parser.parse_known_args(argv)
    if known.sae is None:
        if known.model != PACKAGED_MODEL:
            serve.error(f"give at least one --sae NAME_OR_FOLDER (the packaged model is called {PACKAGED_MODEL})")
        known.sae = ["bundled"]
    return ServeOptions(known.model, tuple(known.sae), tuple(vllm_argv))
