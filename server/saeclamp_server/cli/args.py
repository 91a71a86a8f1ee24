"""The command line: our few flags; every other one of `serve` is vLLM's."""

from __future__ import annotations

import argparse
import re
from importlib.metadata import version
from pathlib import Path

from saeclamp_saes import cli as sae_commands
from saeclamp_saes.cli.arg_types import positive_arg
from saeclamp_server import cli
from saeclamp_server.cli import calibrate as calibrate_command
from saeclamp_server.packaged_model import PACKAGED_MODEL, prepared_model
from saeclamp_server.startup.options import (
    DRAIN_S,
    MAX_BODY,
    MAX_FEATURES,
    MAX_PORT,
    MAX_VECTORS,
    MAX_WAITING,
    ServeOptions,
)

DESCRIPTION = f"""\
Serve MODEL with SAE features that every request can clamp.

MODEL is a local folder, a hub name, or '{PACKAGED_MODEL}' for the packaged model. Flags of `vllm serve` may follow,
such as --port 8001, --max-model-len 4096 or --enforce-eager (see `vllm serve --help`); one that does not go with steering
is refused."""

SAE_HELP = """\
'bundled' (default with the packaged model); a name in your library (`saeclamp sae list`); a folder or file; an id of the
catalogue (`saeclamp sae list --catalogue`), downloaded when first used; or hf://ORG/REPO@COMMIT/PATH. NAME=... serves it
under another name, and ?key=value&... says what its files do not, such as ?site=resid_post.19. Repeat for several; 'none'
serves none, but vectors at every --vector-site"""

NO_SAE = "none"


def parse_args(argv: list[str]) -> ServeOptions | argparse.Namespace:
    """
    Split the command line. Exits with status 2 and a usage message when it is wrong.

    returns: options of `serve`; for every other command a namespace, whose `run(namespace)` returns the exit status
    """
    parser, serve = build_parsers()
    if argv[:1] != ["serve"]:
        argv, engine_argv = calibrate_command.split_engine_flags(argv)
        return parser.parse_args(argv, argparse.Namespace(engine_argv=engine_argv))
    known, vllm_argv = parser.parse_known_args(argv)
    return ServeOptions(
        model=known.model,
        saes=_saes(serve, known),
        vllm_argv=tuple(vllm_argv),
        allow_unverified=known.allow_unverified_sae,
        max_dose=known.max_dose,
        vector_sites=tuple(known.vector_site),
        max_vectors=known.max_vectors,
        max_features=known.max_features,
        max_waiting=known.max_waiting,
        max_body=known.max_body,
        offload_saes=known.offload_saes,
        vectors=known.vectors,
        variants=known.variants,
        drain_s=known.drain,
        playground=known.playground,
        verbose=known.verbose,
        trace=known.trace,
        metrics_port=known.metrics_port,
        fleet=known.fleet,
        replica=known.replica,
    )


def build_parsers() -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """Build the parser of all commands, and return with it that of `serve`."""
    parser = argparse.ArgumentParser("saeclamp", description="Steer language models with sparse-autoencoder features.")
    parser.add_argument("--version", action="version", version=f"saeclamp {version('saeclamp')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="command")
    serve = _add_serve(commands)
    sae_commands.register(commands, _model_path)
    calibrate_command.register(commands, _model_path)
    cli.register(commands)
    return parser, serve


def _saes(serve: argparse.ArgumentParser, known: argparse.Namespace) -> tuple[str, ...]:
    """List the SAEs that were asked for; the packaged model has one of its own, unless `none` is wanted."""
    has_places = bool(known.vector_site) and known.max_vectors > 0
    saes = known.sae or (["bundled"] if known.model == PACKAGED_MODEL else [])
    saes = [] if saes == [NO_SAE] else saes
    if NO_SAE in saes:
        serve.error(f"--sae {NO_SAE} stands alone")
    if not saes and not has_places:
        serve.error(
            f"give at least one --sae NAME_OR_FOLDER (the packaged model is called {PACKAGED_MODEL}), or a --vector-site "
            "for vectors of your own"
        )
    return tuple(saes)


def _add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    serve = commands.add_parser(
        "serve",
        help="serve a model with SAEs",
        usage="saeclamp serve MODEL [--sae NAME_OR_FOLDER]... [flags of vllm serve]",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_served(serve)
    _add_limits(serve)
    _add_process(serve)
    return serve


def _add_served(serve: argparse.ArgumentParser) -> None:
    serve.add_argument("model", metavar="MODEL")
    serve.add_argument("--sae", action="append", metavar="NAME_OR_FOLDER", help=SAE_HELP)
    serve.add_argument(
        "--allow-unverified-sae",
        action="store_true",
        help="serve SAEs even if they do not reconstruct what the model has where they claim to sit",
    )
    serve.add_argument(
        "--max-dose",
        type=positive_arg,
        metavar="X",
        help="refuse requests that could move a token by more than X times the layer's median residual norm (default 100)",
    )
    serve.add_argument(
        "--vector-site",
        action="append",
        default=[],
        metavar="SITE",
        help="where vectors that users upload can sit besides the sites of the SAEs, such as resid_post.12; 'all' for "
        "resid_post behind every layer. Repeat for several",
    )
    serve.add_argument(
        "--max-vectors",
        type=_positive_capacity,
        default=MAX_VECTORS,
        metavar="N",
        help=f"how many vectors each site holds (default {MAX_VECTORS}); 0 for none at all",
    )


def _add_limits(serve: argparse.ArgumentParser) -> None:
    serve.add_argument(
        "--max-features",
        type=_positive_capacity,
        default=MAX_FEATURES,
        metavar="N",
        help=f"how many distinct features requests may use at once (default {MAX_FEATURES}); more wait their turn",
    )
    serve.add_argument(
        "--max-waiting",
        type=_positive_capacity,
        default=MAX_WAITING,
        metavar="N",
        help=f"how many requests may wait for features (default {MAX_WAITING}); more are refused with status 429",
    )
    serve.add_argument(
        "--max-body",
        type=_megabytes,
        default=MAX_BODY,
        metavar="MB",
        help=f"refuse larger bodies with status 413 (default {MAX_BODY}): while one is parsed, nobody else is answered",
    )
    serve.add_argument(
        "--offload-saes",
        action="store_true",
        help="keep SAEs in the host's memory, and on the device only the features in use, up to --max-features of each "
        "(TopK SAEs, whose features depend on each other, stay whole); their strongest features are then read on the host",
    )


def _add_process(serve: argparse.ArgumentParser) -> None:
    serve.add_argument(
        "--drain",
        type=_seconds,
        default=DRAIN_S,
        metavar="SECONDS",
        help=f"how long running requests may take to end when the server is told to stop (default {DRAIN_S:g}); new ones "
        "are refused with status 503 meanwhile. A second SIGTERM or Ctrl-C ends at once",
    )
    serve.add_argument(
        "--no-playground",
        dest="playground",
        action="store_false",
        help="serve no page to try steering on (by default it is at /playground/, and / leads there)",
    )
    serve.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="show vLLM's log and the access log here; otherwise they go to a file, which is named at the start",
    )
    serve.add_argument(
        "--vectors",
        type=Path,
        metavar="FOLDER",
        help="a folder of vectors, as earlier versions kept them: the database takes them over, and the files move to "
        "a folder within it (default: the model's folder in the cache)",
    )
    serve.add_argument(
        "--variants",
        metavar="URL",
        help="database of variants and uploaded vectors: sqlite:////path/to/file or "
        "postgresql+psycopg://user:password@host/database (default: a SQLite file in ~/.local/share/saeclamp)",
    )
    serve.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="append a line of JSON to FILE for each steered request when it has ended: its id, spec and receipt, or why it "
        "has none",
    )
    serve.add_argument(
        "--metrics-port",
        type=_port,
        metavar="PORT",
        help="serve /metrics on a port of its own too, where it needs no key: keep it from whom the server's port is for",
    )
    serve.add_argument(
        "--fleet",
        type=_name,
        metavar="NAME",
        help="be one of several servers that answer as one, with a PostgreSQL database in common (--variants): one that "
        "would answer otherwise than the first does not start",
    )
    serve.add_argument(
        "--replica",
        type=_name,
        metavar="NAME",
        help="what receipts call this server (default: the machine's name)",
    )


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", text):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not 1 to 64 letters, digits, '_', '.' and '-'")
    return text


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) <= MAX_PORT):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a port, a whole number from 1 to {MAX_PORT}")
    return int(text)


def _positive_capacity(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number from 0 to 99999")
    return int(text)


def _megabytes(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text)):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number from 1 to 99999")
    return int(text)


def _seconds(text: str) -> float:
    return 0.0 if text == "0" else positive_arg(text)


def _model_path(model: str) -> str:
    """Stand in the packaged model's folder for its name. Raises PackagedModelError."""
    if model != PACKAGED_MODEL:
        return model
    return str(prepared_model())
