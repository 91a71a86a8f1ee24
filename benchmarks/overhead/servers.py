"""Vanilla vLLM and saeclamp's servers, on the same model with the same flags."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from benchmarks.overhead.settings import NUM_LAYERS, OTHER_LAYERS
from safetensors.torch import save
from tests.e2e.checkpoints import make_sae
from tests.e2e.serving import Server, run_server

from saeclamp import Client
from saeclamp_server.engine.settings import bind_threads, prepare_environment
from saeclamp_server.packaged_model import PACKAGED_MODEL, prepared_model

WIDTH = 576


@contextmanager
def started(eager: bool, order: Sequence[str], folder: Path) -> Iterator[dict[str, Server]]:
    """
    Start each server, one after the other, and end them with the block.

    order:  names of the servers, as in `Setting.server`
    folder: for their logs, SAEs and vectors; empty
    """
    prepare_environment()
    bind_threads(1)  # every process inherits it
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB, of each
    flags = ["--dtype", "float32", "--max-model-len", "2048", "--served-model-name", PACKAGED_MODEL]
    flags += ["--max-num-seqs", "256", *(["--enforce-eager"] if eager else [])]
    commands = _commands(folder)
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(run_server([*commands[name], *flags], folder / f"{name}.log", PACKAGED_MODEL))
            for name in order
        }
        _upload_vectors(servers["all layers"])
        yield servers


def _commands(folder: Path) -> dict[str, list[str]]:
    # `vllm serve` itself looks for a distribution named vllm, which the CPU build is not
    plain = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(prepared_model(print))]
    ours = [
        sys.executable,
        "-m",
        "saeclamp_server",
        "serve",
        PACKAGED_MODEL,
        "--sae",
        "bundled",
        "--allow-unverified-sae",
    ]
    others = {
        f"layer-{layer}": make_sae(folder / f"layer-{layer}", layer, WIDTH, d_sae=2048, seed=layer)
        for layer in OTHER_LAYERS
    }
    named = [part for name, path in others.items() for part in ("--sae", f"{name}={path}")]
    return {
        "vanilla": [*plain, "--host", "127.0.0.1"],
        "1 layer": ours,
        "4 layers": [*ours, *named],
        "all layers": [*ours, "--vector-site", "all", "--vectors", str(folder / "vectors")],
    }


def _upload_vectors(server: Server) -> None:
    torch.manual_seed(0)
    with Client(server.url) as client:
        for layer in range(NUM_LAYERS):
            words = {"layer": str(layer), "site": "resid_post", "sign": "+1", "source": "random"}
            client.vectors.upload(f"layer-{layer}", save({"vector": torch.randn(WIDTH)}, words))
