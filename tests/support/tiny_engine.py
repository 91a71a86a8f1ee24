"""A server of a tiny random model with several SAEs, and its oracle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tests.oracles.reference import Move, ReferenceModel, ReferenceSAE
from tests.support.checkpoints import LEFT_OUT_IDS, make_model, make_sae
from tests.support.fork_server import V2_NURSERY
from tests.support.serving import Server, serve

MOVES = [
    Move("low", 3, "clamp", 9.0),
    Move("low", 40, "add", -4.0, "generated"),
    Move("high", 3, "clamp", -6.0, "prompt"),
    Move("high", 11, "ablate"),
    Move("other", 3, "add", 5.0),
]


@contextmanager
def tiny_engine(
    folder: Path, tokenizer_folder: Path, kind: str, *flags: str, runner: str = "V1"
) -> Iterator[tuple[Server, ReferenceModel]]:
    """
    A random four-layer model with SAEs behind layers 0 and 3 (the last), two of them behind layer 3. One is stored in bf16.

    runner: of vLLM, "V1" or "V2"; the latter in Triton's interpreter, which is slow
    """
    model = make_model(folder / "model", tokenizer_folder, kind, has_sink=True)
    saes = {
        "low": make_sae(folder / "low", layer=0, d_in=64, seed=1, threshold=0.5),
        "high": make_sae(folder / "high", layer=3, d_in=64, seed=2, threshold=0.5),
        "other": make_sae(folder / "other", layer=3, d_in=64, d_sae=32, seed=3, threshold=0.0, dtype=torch.bfloat16),
    }
    named = [part for name, path in saes.items() for part in ("--sae", f"{name}={path}")]
    flags = ("--dtype", "float32", "--max-model-len", "1024", "--served-model-name", "tiny", *flags)
    own = {"nursery": V2_NURSERY, "entry": "tests.support.v2_server"} if runner == "V2" else {}
    with serve(folder / "server.log", str(model), *named, *flags, name="tiny", **own) as server:
        yield server, ReferenceModel(model, {name: ReferenceSAE(path) for name, path in saes.items()}, LEFT_OUT_IDS)
