"""`saeclamp serve MODEL --sae NAME_OR_FOLDER [flags of vllm serve]`, `saeclamp sae ...`, and `saeclamp train ...`."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import signal
import sys
from collections.abc import Callable, Sequence

from saeclamp_saes.cli.log_handler import set_up_log
from saeclamp_saes.errors import UserError
from saeclamp_server.cli.args import parse_args
from saeclamp_server.cli.output import run_with_checked_output
from saeclamp_server.startup.options import ServeOptions

SERVER_EXTRA = (
    "in a clone of the repository `make serve` installs all that a server needs; by hand it is the extra 'cpu', or 'server' "
    "for an NVIDIA GPU"
)
SAES_EXTRA = "in a clone of the repository `pip install '.[saes]'` installs what it takes"
OF_SAES = ("torch", "safetensors", "numpy", "yaml", "rich", "transformers", "pyarrow")
"""Packages that commands import which read SAEs; those that only speak to a server say that they need nothing."""

TERMINATED = 128 + signal.SIGTERM
"""Exit status, as of a process that the signal ended."""


def main() -> None:
    """Run the command line."""
    try:
        sys.exit(run_with_checked_output(_main))
    except KeyboardInterrupt:
        sys.exit(130)


def _main() -> int:
    options = parse_args(sys.argv[1:])
    return _serve(options) if isinstance(options, ServeOptions) else _run(options)


def _serve(options: ServeOptions) -> int:
    _check_installed("serve", ("torch", "safetensors", "transformers", "vllm"), SERVER_EXTRA)
    from saeclamp_server.launch import launch  # after the check, because it needs all of them

    return launch(options)


def _run(options: argparse.Namespace) -> int:
    _check_installed(options.command, getattr(options, "needs", OF_SAES), SAES_EXTRA)
    run: Callable[[argparse.Namespace], int] = options.run
    signal.signal(signal.SIGTERM, _terminate)
    set_up_log()
    try:
        return run(options)
    except asyncio.CancelledError:
        return TERMINATED
    except UserError as exc:
        sys.exit(f"saeclamp: {exc}")


def _terminate(*_: object) -> None:
    """End by an exception, so that what is half made is cleared away; in an event loop by the tasks' own."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        sys.exit(TERMINATED)
    for task in asyncio.all_tasks(loop):
        loop.call_soon_threadsafe(task.cancel)  # which also wakes a loop that sleeps in its selector


def _check_installed(command: str, names: Sequence[str], how: str) -> None:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"saeclamp: `saeclamp {command}` needs {', '.join(missing)}, not installed here: {how}.")


if __name__ == "__main__":
    main()
