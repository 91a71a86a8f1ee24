"""Circuit-tracer's sets of single layers' transcoders, as mwhanna and mntss publish them."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file
from tests.saes.loaders.layouts import Written
from torch import Tensor

HOOKS = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}


def write(
    folder: Path,
    *,
    d_in: int = 16,
    d_sae: int = 40,
    layer: int = 5,
    seed: int = 0,
    jumps: bool = False,
    skips: bool = False,
    hooks: dict[str, str] | None = None,
    trainer_config: str | None = "wandb-config.yaml",
    config: bool = True,
) -> Written:
    """Write one layer; hooks: what `config.yaml` says; trainer_config: the name of the trainer's configuration."""
    generator = torch.Generator().manual_seed(seed + layer)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    stored = {"W_enc": normal(d_sae, d_in) / d_in**0.5, "b_enc": 0.4 * normal(d_sae)}
    stored |= {"W_dec": normal(d_sae, d_in) * (0.5 + normal(d_sae, 1).abs()), "b_dec": 0.3 * normal(d_in)}
    if jumps:
        stored["activation_function.threshold"] = 0.6 * torch.rand(d_sae, generator=generator)
    if skips:
        stored["W_skip"] = 0.3 * normal(d_in, d_in)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(stored, folder / f"layer_{layer}.safetensors")
    if config:
        cfg = {"model_name": "Qwen/Qwen3-0.6B", "model_kind": "transcoder_set", **(HOOKS if hooks is None else hooks)}
        (folder / "config.yaml").write_text(yaml.safe_dump(cfg))
    if trainer_config:
        values = {"d_model": d_in, "d_feature": d_sae, "batch_size": 4096}
        text = yaml.safe_dump({name: {"desc": None, "value": value} for name, value in values.items()})
        (folder / trainer_config).write_text(text)
    W = {name: tensor.double() for name, tensor in stored.items()}

    def encode(x: Tensor) -> Tensor:
        pre = x @ W["W_enc"].T + W["b_enc"]
        return pre * (pre > W["activation_function.threshold"]) if jumps else torch.relu(pre)

    def decode(acts: Tensor, x: Tensor) -> Tensor:
        out = acts @ W["W_dec"] + W["b_dec"]
        return out + x @ W["W_skip"].T if skips else out

    return Written(folder, encode, decode)
