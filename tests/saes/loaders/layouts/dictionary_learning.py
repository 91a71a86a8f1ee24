"""dictionary_learning: `resid_post_layer_L/trainer_0/{ae.pt, config.json}`, all seven classes, and its crosscoder fork's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tests.saes.loaders.layouts import Written, pickles
from tests.saes.loaders.layouts.linear import random_linear
from torch import Tensor


def write(
    folder: Path,
    *,
    d_in: int = 16,
    d_sae: int = 40,
    layer: int = 5,
    seed: int = 0,
    dict_class: str = "BatchTopKSAE",
    k: int = 8,
    threshold: float | None = 0.6,
    k_stored: bool = True,
    norm_factor: float | None = None,
    normalisation: str | None = None,
    config: dict[str, Any] | None = None,
    **trainer: Any,
) -> Written:
    """
    Write a trainer's folder.

    threshold: of BatchTopK, Matryoshka and TopK; None leaves the tensor away
    k_stored:  whether k is a tensor, too
    norm_factor: write a run's backup instead of an SAE for use, with what its inputs were divided by
    normalisation: buffers of the fork's BatchTopKSAE: "none" (NaN), or "global"
    config:    the whole configuration, {} for none; trainer: changes of its trainer
    """
    path = folder / f"resid_post_layer_{layer}" / "trainer_0"
    stored = _tensors(dict_class, d_in, d_sae, seed, k if k_stored else None, threshold)
    if normalisation:
        stored |= _normalisation(d_in, seed, normalisation == "none")
    about = {"dict_class": dict_class, "activation_dim": d_in, "dict_size": d_sae, "k": k, "layer": layer}
    about |= {"lm_name": "EleutherAI/pythia-70m-deduped", "submodule_name": f"resid_post_layer_{layer}", **trainer}
    about = {key: value for key, value in about.items() if value is not ...}
    config = (
        {"trainer": about, "buffer": {"d_submodule": d_in, "io": "out", "ctx_len": 1024}} if config is None else config
    )
    state = {"step": 10, "optimizer": {"state": {"exp_avg": torch.ones(3)}, "lr": 1e-4}, "norm_factor": norm_factor}
    pickles.save(path / "ae.pt", stored if norm_factor is None else {**state, "ae": stored, "config": about})
    if config:
        (path / "config.json").write_text(json.dumps(config))
    raw = {name: tensor.double() for name, tensor in stored.items()}
    for name in BIASES & raw.keys():
        raw[name] = raw[name] * (norm_factor or 1.0)
    return Written(path, lambda x: encode(dict_class, raw, x), lambda acts, x: decode(dict_class, raw, acts))


def _normalisation(d_in: int, seed: int, is_none: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed + 2)
    mean, std = torch.randn(d_in, generator=generator), 0.5 + torch.rand(d_in, generator=generator)
    mean, std = (mean * torch.nan, std * torch.nan) if is_none else (mean, std)
    scale = torch.tensor(1.0) if is_none else 2.5 / std.square().sum().add(1e-8).sqrt()
    buffers = {"activation_mean": mean, "activation_std": std, "activation_global_scale": scale}
    return {**buffers, "target_rms": torch.tensor(2.5)}


def _tensors(
    dict_class: str, d_in: int, d_sae: int, seed: int, k: int | None, threshold: float | None
) -> dict[str, Tensor]:
    encoder, b_enc, decoder, b_dec = random_linear(d_in, d_sae, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    linear = {"encoder.weight": encoder, "decoder.weight": decoder}
    bare = {"W_enc": encoder.T.contiguous(), "b_enc": b_enc, "W_dec": decoder.T.contiguous(), "b_dec": b_dec}
    buffers = {} if threshold is None else {"threshold": torch.tensor(threshold)}
    buffers |= {} if k is None else {"k": torch.tensor(k, dtype=torch.int)}
    if dict_class == "AutoEncoder":
        return {"bias": b_dec, **linear, "encoder.bias": b_enc}
    if dict_class == "AutoEncoderNew":
        return {**linear, "encoder.bias": b_enc, "decoder.bias": b_dec}
    if dict_class == "GatedAutoEncoder":
        gates = {"gate_bias": b_enc, "mag_bias": 0.5 * torch.randn(d_sae, generator=generator)}
        return {"decoder_bias": b_dec, "r_mag": 0.5 * torch.randn(d_sae, generator=generator), **gates, **linear}
    if dict_class == "JumpReluAutoEncoder":
        return {**bare, "threshold": torch.rand(d_sae, generator=generator)}
    if dict_class == "MatryoshkaBatchTopKSAE":
        return {**buffers, "group_sizes": torch.tensor([d_sae // 4, d_sae - d_sae // 4]), **bare}
    return {**buffers, "b_dec": b_dec, **linear, "encoder.bias": b_enc}


BIASES = {
    "bias",
    "encoder.bias",
    "b_enc",
    "b_dec",
    "decoder.bias",
    "decoder_bias",
    "mag_bias",
    "gate_bias",
    "threshold",
}
"""What `scale_biases` multiplies, before an SAE is saved for use."""


def encode(dict_class: str, raw: dict[str, Tensor], x: Tensor) -> Tensor:
    """Activations according to the class's `encode`: (num_tokens, d_sae)."""
    if "activation_mean" in raw and not raw["activation_mean"].isnan().any():
        x = (x - raw["activation_mean"]) * raw["activation_global_scale"]
    if dict_class == "AutoEncoder":
        return torch.relu((x - raw["bias"]) @ raw["encoder.weight"].T + raw["encoder.bias"])
    if dict_class == "AutoEncoderNew":
        return torch.relu(x @ raw["encoder.weight"].T + raw["encoder.bias"])
    if dict_class == "GatedAutoEncoder":
        pre = (x - raw["decoder_bias"]) @ raw["encoder.weight"].T
        gate = (pre + raw["gate_bias"] > 0).double()
        return gate * torch.relu(raw["r_mag"].exp() * pre + raw["mag_bias"])
    if dict_class == "JumpReluAutoEncoder":
        pre = x @ raw["W_enc"] + raw["b_enc"]
        return torch.relu(pre * (pre > raw["threshold"]))
    if dict_class == "MatryoshkaBatchTopKSAE":
        acts = torch.relu((x - raw["b_dec"]) @ raw["W_enc"] + raw["b_enc"])
        return acts * (acts > raw["threshold"])
    acts = torch.relu((x - raw["b_dec"]) @ raw["encoder.weight"].T + raw["encoder.bias"])
    if dict_class == "BatchTopKSAE":
        return acts * (acts > raw["threshold"])
    return acts * (acts >= acts.sort(dim=1, descending=True).values[:, raw["k"].long() - 1, None])


def decode(dict_class: str, raw: dict[str, Tensor], acts: Tensor) -> Tensor:
    """Reconstruction according to the class's `decode`: (num_tokens, d_in)."""
    bias = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias", "GatedAutoEncoder": "decoder_bias"}
    rows = raw["W_dec"] if "W_dec" in raw else raw["decoder.weight"].T
    out = acts @ rows + raw[bias.get(dict_class, "b_dec")]
    if "activation_mean" in raw and not raw["activation_mean"].isnan().any():
        out = out / (raw["activation_global_scale"] + 1e-8) + raw["activation_mean"]
    return out
