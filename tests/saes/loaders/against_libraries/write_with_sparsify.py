"""Writes a training run's folder with sparsify's own code, and what its own code computes of it. argv: the folder."""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import save_file
from sparsify import SparseCoder, SparseCoderConfig, TrainConfig, Trainer

folder = Path(sys.argv[1])
D_IN, D_SAE, K = 16, 40, 8
HOOKS = {
    "layers.15": {},
    "layers.3.mlp": {"transcode": True},
    "layers.4.mlp.down_proj": {},
    "layers.5": {"skip_connection": True},
    "layers.6.mlp": {"skip_connection": True, "transcode": True},
    "layers.9/seed0": {},
    "layers.9/seed1": {"multi_topk": True},
}


def filled(**flags: bool) -> SparseCoder:
    coder = SparseCoder(D_IN, SparseCoderConfig(num_latents=D_SAE, k=K, **flags))
    for parameter in coder.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return coder


@torch.no_grad()
def expected(coder: SparseCoder, x: torch.Tensor) -> dict[str, torch.Tensor]:
    top_acts, top_indices, _ = coder.encode(x)
    acts = torch.zeros(len(x), D_SAE).scatter(1, top_indices, top_acts)
    out = coder.decode(top_acts, top_indices)  # `forward` gives that of four times k where it trains with multi_topk
    return {"x": x, "acts": acts, "out": out if coder.W_skip is None else out + x @ coder.W_skip.mT}


torch.manual_seed(0)
saes = {name: filled(**flags) for name, flags in HOOKS.items()}
state = SimpleNamespace(
    optimizers=[torch.optim.Adam(saes["layers.15"].parameters())],
    lr_schedulers=[],
    global_step=12,
    num_tokens_since_fired={name: torch.zeros(D_SAE) for name in saes},
    best_loss=dict.fromkeys(saes, 1.0),
    cfg=TrainConfig(SparseCoderConfig(num_latents=D_SAE, k=K)),
)
Trainer._checkpoint(state, saes, str(folder / "run"), rank_zero=True)
for name, coder in saes.items():
    file = folder / "expected" / f"{name}.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(expected(coder, torch.randn(200, D_IN) + 0.2), file)
