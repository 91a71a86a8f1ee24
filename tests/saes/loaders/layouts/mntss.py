"""Circuit-tracer's cross-layer transcoders, as mntss publishes them: two files a layer."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from safetensors.torch import save_file
from tests.saes.loaders.layouts import Written
from torch import Tensor


class Layers(NamedTuple):
    """A whole transcoder on disk, and what it computes."""

    layers: list[Written]
    """Of each layer's features alone; b_dec_i is left to layer i's."""
    reconstruct: list[Tensor]
    """b_dec_i of every layer, fp64"""


def write_all(
    folder: Path, *, d_in: int = 16, d_sae: int = 40, num_layers: int = 4, seed: int = 0, jumps: bool = False
) -> Layers:
    """Write every layer of a transcoder, and `config.yaml`."""
    folder.mkdir(parents=True, exist_ok=True)
    cfg = {"model_name": "google/gemma-2-2b", "model_kind": "cross_layer_transcoder"}
    cfg |= {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}
    (folder / "config.yaml").write_text(yaml.safe_dump(cfg))
    generator = torch.Generator().manual_seed(seed)
    written, biases = [], []
    for layer in range(num_layers):
        one, b_dec = _write_layer(folder, layer, num_layers, d_in, d_sae, generator, jumps)
        written.append(one)
        biases.append(b_dec)
    return Layers(written, biases)


def write(
    folder: Path, *, d_in: int = 16, d_sae: int = 40, layer: int = 1, seed: int = 0, jumps: bool = False
) -> Written:
    """Write a transcoder of four layers, of which one is asked for."""
    return write_all(folder, d_in=d_in, d_sae=d_sae, seed=seed, jumps=jumps).layers[layer]


def _write_layer(
    folder: Path, layer: int, num_layers: int, d_in: int, d_sae: int, generator: torch.Generator, jumps: bool
) -> tuple[Written, Tensor]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    W_enc, b_enc, b_dec = normal(d_sae, d_in) / d_in**0.5, 0.4 * normal(d_sae), 0.3 * normal(d_in)
    W_dec = normal(d_sae, num_layers - layer, d_in)
    stored = {f"W_enc_{layer}": W_enc, f"b_enc_{layer}": b_enc, f"b_dec_{layer}": b_dec}
    threshold = 0.5 * torch.rand(d_sae, generator=generator)
    if jumps:
        stored[f"threshold_{layer}"] = threshold
    save_file(stored, folder / f"W_enc_{layer}.safetensors")
    save_file({f"W_dec_{layer}": W_dec}, folder / f"W_dec_{layer}.safetensors")

    def encode(x: Tensor) -> Tensor:
        pre = x @ W_enc.double().T + b_enc.double()
        return pre * (pre > threshold.double()) if jumps else torch.relu(pre)

    def decode(acts: Tensor, x: Tensor) -> Tensor:
        to_layers = [acts @ W_dec[:, above].double() for above in range(num_layers - layer)]
        return torch.cat([to_layers[0] + b_dec.double(), *to_layers[1:]], dim=1)

    return Written(folder, encode, decode), b_dec.double()
