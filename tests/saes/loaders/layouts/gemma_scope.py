"""Gemma Scope of Gemma 2: `params.npz` in folders whose names say everything else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tests.saes.loaders.layouts import Written
from torch import Tensor


def write(
    folder: Path,
    *,
    d_in: int = 16,
    d_sae: int = 40,
    layer: int = 5,
    seed: int = 0,
    release: str = "gemma-scope-2b-pt-res",
    embedding: bool = False,
    hub: bool = False,
) -> Written:
    """
    hub: as the Hub's cache keeps it, a link to a file without a name.

    The release says that an embedding SAE is used on the embedding over sqrt(d_in), and its output times sqrt(d_in).
    """
    random = np.random.default_rng(seed)
    stored = {
        "W_enc": random.normal(size=(d_in, d_sae)) / d_in**0.5 * (d_in**0.5 if embedding else 1),
        "W_dec": random.normal(size=(d_sae, d_in)),
        "b_enc": 0.3 * random.normal(size=d_sae),
        "b_dec": 0.5 * random.normal(size=d_in),
        "threshold": random.uniform(0.001, 1.0, size=d_sae),
    }
    stored = {name: array.astype(np.float32) for name, array in stored.items()}
    inside = Path("embedding" if embedding else f"layer_{layer}", "width_16k", "average_l0_71")
    root = folder / (f"models--google--{release}/snapshots/abc123" if hub else release)
    path = root / inside
    path.mkdir(parents=True)
    if hub:
        blob = folder / f"models--google--{release}" / "blobs" / "0123abcd"
        blob.parent.mkdir()
        with blob.open("wb") as file:
            np.savez(file, **stored)
        (path / "params.npz").symlink_to(blob)
    else:
        np.savez(path / "params.npz", **stored)
    W = {name: torch.from_numpy(array).double() for name, array in stored.items()}
    unit = d_in**0.5 if embedding else 1.0

    def encode(x: Tensor) -> Tensor:
        pre = (x / unit) @ W["W_enc"] + W["b_enc"]
        return torch.relu(pre) * (pre > W["threshold"])

    def decode(acts: Tensor, x: Tensor) -> Tensor:
        return unit * (acts @ W["W_dec"] + W["b_dec"])

    return Written(path, encode, decode)
