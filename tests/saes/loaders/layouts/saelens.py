"""SAELens: `cfg.json` and `sae_weights.safetensors`, in version 6's nested and version 5's flat configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tests.saes.loaders.layouts import Written
from torch import Tensor

THRESHOLDED = ("jumprelu", "jumprelu_transcoder", "jumprelu_skip_transcoder")
FACTOR = 0.37
"""What inputs are multiplied by with expected_average_only_in."""


def write(
    folder: Path,
    *,
    d_in: int = 16,
    d_sae: int = 40,
    layer: int = 5,
    seed: int = 0,
    architecture: str = "standard",
    version: int = 6,
    d_out: int = 12,
    k: int = 8,
    rescale: bool = False,
    subtract: bool = True,
    normalize: str | bool | None = "none",
    hook: str = "hook_resid_post",
    center: bool | None = None,
    log_threshold: bool = False,
    scaling_factor: bool = False,
    dtype: torch.dtype = torch.float32,
    model_name: str = "gemma-2-2b",
) -> Written:
    """center: `center_writing_weights`, None to leave it out; d_out: of a transcoder."""
    transcoder = architecture.endswith("transcoder")
    stored = _random(architecture, d_in, d_sae, d_out if transcoder else d_in, seed, log_threshold, scaling_factor)
    stored = {name: tensor.to(dtype) for name, tensor in stored.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(stored, folder / "sae_weights.safetensors")
    cfg: dict[str, Any] = {"d_in": d_in, "d_sae": d_sae, "dtype": str(dtype).removeprefix("torch."), "device": "cpu"}
    cfg |= {"apply_b_dec_to_input": subtract and not transcoder, "normalize_activations": normalize}
    metadata: dict[str, Any] = {
        "model_name": model_name,
        "hook_name": f"blocks.{layer}.{hook}",
        "hook_head_index": None,
    }
    if center is not None:
        metadata["model_from_pretrained_kwargs"] = {"center_writing_weights": center}
    if transcoder:
        cfg["d_out"], metadata["hook_name_out"] = d_out, f"blocks.{layer}.hook_mlp_out"
    if version == 5:
        topk = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": k}}
        cfg |= {**metadata, "finetuning_scaling_factor": scaling_factor, "architecture": architecture}
        cfg |= {**topk, "architecture": "standard"} if architecture == "topk" else {"activation_fn_str": "relu"}
    else:
        cfg |= {"architecture": architecture, "metadata": {**metadata, "sae_lens_version": "6.54.12"}}
        cfg |= {"k": k, "rescale_acts_by_decoder_norm": rescale} if architecture in ("topk", "abstopk") else {}
        cfg["reshape_activations"] = "hook_z" if hook.endswith("_z") else "none"
    (folder / "cfg.json").write_text(json.dumps(cfg))
    W = {name: tensor.double() for name, tensor in stored.items()}
    constant = FACTOR if normalize in (True, "expected_average_only_in") else 1.0

    def normalised(x: Tensor) -> tuple[Tensor, Tensor | float, Tensor | float]:
        """The encoder's input, and what a reconstruction is multiplied by and moved by."""
        mean = x.mean(dim=1, keepdim=True) if center else 0.0
        x = x - mean
        if normalize == "layer_norm":
            own, std = x.mean(dim=1, keepdim=True), x.std(dim=1, keepdim=True)
            return (x - own) / (std + 1e-5), std, own + mean
        if normalize == "constant_norm_rescale":
            length = x.norm(dim=1, keepdim=True) / d_in**0.5
            return x / length, length, mean
        return x * constant, 1 / constant, mean

    def encode(x: Tensor) -> Tensor:
        v = normalised(x)[0]
        if subtract and not transcoder:
            v = v - W["b_dec"]
        if architecture == "gated":
            gate = v @ W["W_enc"] + W["b_gate"] > 0
            return gate * torch.relu(v @ (W["W_enc"] * W["r_mag"].exp()) + W["b_mag"])
        pre = v @ W["W_enc"] + W["b_enc"]
        if architecture in THRESHOLDED:
            threshold = W["log_threshold"].exp() if log_threshold else W["threshold"]
            return torch.relu(pre) * (pre > threshold)
        if architecture in ("topk", "abstopk"):
            pre = pre * W["W_dec"].norm(dim=1) if rescale else pre
            size = pre.abs() if architecture == "abstopk" else pre
            kept = pre * (size >= size.sort(dim=1, descending=True).values[:, k - 1 : k])
            return kept if architecture == "abstopk" else torch.relu(kept)
        return torch.relu(pre)

    def decode(acts: Tensor, x: Tensor) -> Tensor:
        acts = acts / W["W_dec"].norm(dim=1) if rescale else acts
        acts = acts * W["scaling_factor"] if scaling_factor else acts
        out = acts @ W["W_dec"] + W["b_dec"]
        if transcoder:
            centered = x - x.mean(dim=1, keepdim=True) if center else x
            return out / constant + (centered @ W["W_skip"].T if "W_skip" in W else 0.0)
        _, scale, mean = normalised(x)
        return out * scale + mean

    return Written(folder, encode, decode)


def _random(
    architecture: str, d_in: int, d_sae: int, d_out: int, seed: int, log_threshold: bool, scaling_factor: bool
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    tensors = {"W_enc": normal(d_in, d_sae) / d_in**0.5, "b_dec": 0.3 * normal(d_out)}
    tensors["W_dec"] = normal(d_sae, d_out) * (0.5 + torch.rand(d_sae, 1, generator=generator))
    if architecture == "gated":
        tensors |= {"b_gate": 0.4 * normal(d_sae), "b_mag": 0.4 * normal(d_sae), "r_mag": 0.5 * normal(d_sae)}
    else:
        tensors["b_enc"] = 0.4 * normal(d_sae)
    if architecture in THRESHOLDED and log_threshold:
        tensors["log_threshold"] = normal(d_sae) - 1
    elif architecture in THRESHOLDED:
        tensors["threshold"] = 0.6 * torch.rand(d_sae, generator=generator) - 0.1  # some below zero: a plain ReLU
    if architecture.endswith("skip_transcoder"):
        tensors["W_skip"] = 0.3 * normal(d_out, d_in)
    if scaling_factor:
        tensors["scaling_factor"] = 0.5 + torch.rand(d_sae, generator=generator)
    return tensors
