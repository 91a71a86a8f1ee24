"""Vanilla vLLM and saeclamp's servers, on the same model with the same flags."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from benchmarks.overhead.settings import ALL_LAYERS, FOUR_LAYERS, NUM_LAYERS, OTHER_LAYERS, PLAIN
from safetensors.torch import save
from tests.support.checkpoints import make_sae
from tests.support.serving import Server, run_server

from saeclamp import Client
from saeclamp_server.packaged_model import PACKAGED_MODEL, prepared_model
from saeclamp_server.startup.vllm_settings import bind_threads, prepare_environment

WIDTH = 576


@contextmanager
def started(name: str, eager: bool, folder: Path) -> Iterator[Server]:
    """
    Start a server, and end it with the block.

    name:   as in `Setting.server`
    folder: for logs, SAEs and vectors
    """
    prepare_environment()
    bind_threads(1)  # every process inherits it
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB
    flags = ["--dtype", "float32", "--max-model-len", "2048", "--served-model-name", PACKAGED_MODEL]
    flags += ["--max-num-seqs", "256", *(["--enforce-eager"] if eager else [])]
    with run_server([*_command(name, folder), *flags], folder / f"{name}.log", PACKAGED_MODEL) as server:
        if name == ALL_LAYERS:
            _upload_vectors(server)
        yield server


def _command(name: str, folder: Path) -> list[str]:
    if name == PLAIN.server:
        # `vllm serve` itself looks for a distribution named vllm, which the CPU build is not
        vanilla = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(prepared_model())]
        return [*vanilla, "--host", "127.0.0.1"]
    ours = [sys.executable, "-m", "saeclamp_server", "serve", PACKAGED_MODEL]
    ours += ["--sae", "bundled", "--allow-unverified-sae"]
    if name == ALL_LAYERS:
        ours += ["--vector-site", "all", "--vectors", str(folder / "vectors")]
    if name == FOUR_LAYERS:
        for layer in OTHER_LAYERS:
            sae = folder / f"layer-{layer}"
            if not sae.exists():
                make_sae(sae, layer, WIDTH, d_sae=2048, seed=layer)
            ours += ["--sae", f"layer-{layer}={sae}"]
    return ours


def _upload_vectors(server: Server) -> None:
    torch.manual_seed(0)
    with Client(server.url) as client:
        for layer in range(NUM_LAYERS):
            words = {"layer": str(layer), "site": "resid_post", "sign": "+1", "source": "random"}
            client.vectors.upload(f"layer-{layer}", save({"vector": torch.randn(WIDTH)}, words))
