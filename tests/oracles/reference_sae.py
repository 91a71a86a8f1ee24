"""The oracle's SAE: every feature, at every token, as the checkpoint's own documentation says. See `reference`."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


class ReferenceSAE:
    """A SAELens checkpoint of any architecture, computed as its own documentation describes it, all features at once."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self.cfg = json.loads((folder / "cfg.json").read_text())
        self.tensors = {
            name: tensor.to(dtype) for name, tensor in load_file(folder / "sae_weights.safetensors").items()
        }
        self.architecture = self.cfg["architecture"]
        self.reads = one_name(self.cfg["metadata"]["hook_name"])
        self.writes = one_name(self.cfg["metadata"].get("hook_name_out", self.reads))

    def encode(self, x: Tensor) -> Tensor:
        t = self.tensors
        x = self._normalised(x)
        if self.cfg["apply_b_dec_to_input"]:
            x = x - t["b_dec"]
        if self.architecture == "gated":
            is_open = x @ t["W_enc"] + t["b_gate"] > 0
            return is_open * torch.relu(x @ (t["W_enc"] * t["r_mag"].exp()) + t["b_mag"])
        pre = x @ t["W_enc"] + t["b_enc"]
        if self.architecture in ("topk", "abstopk"):
            size = pre.abs() if self.architecture == "abstopk" else pre
            rank = size.argsort(dim=-1, descending=True).argsort(dim=-1)
            kept = pre * (rank < self.cfg["k"])
            return kept if self.architecture == "abstopk" else torch.relu(kept)
        acts = torch.relu(pre)
        return acts * (pre > t["threshold"]) if "threshold" in t else acts

    def to_jump(self, x: Tensor) -> Tensor:
        """How far each feature is from where its activation jumps: there, the last bit of x decides; inf without a jump."""
        t = self.tensors
        if self.architecture != "jumprelu" or "threshold" not in t:
            return torch.full((*x.shape[:-1], len(t["W_dec"])), float("inf"))
        x = self._normalised(x)
        pre = (x - t["b_dec"] if self.cfg["apply_b_dec_to_input"] else x) @ t["W_enc"] + t["b_enc"]
        return torch.where(t["threshold"] > 0, (pre - t["threshold"]).abs(), float("inf"))

    def decode(self, acts: Tensor, x: Tensor) -> Tensor:
        """x: what was encoded; where the input is normalised, the output has its scale."""
        out = acts @ self.tensors["W_dec"] + self.tensors["b_dec"]
        norm = self.cfg.get("normalize_activations", "none")
        if norm == "layer_norm":
            out = out * x.std(dim=-1, keepdim=True) + x.mean(dim=-1, keepdim=True)
        if norm == "constant_norm_rescale":
            out = out * x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
        return out + x @ self.tensors["W_skip"].T if "W_skip" in self.tensors else out

    def _normalised(self, x: Tensor) -> Tensor:
        norm = self.cfg.get("normalize_activations", "none")
        if norm == "layer_norm":
            return (x - x.mean(dim=-1, keepdim=True)) / (x.std(dim=-1, keepdim=True) + 1e-5)
        if norm == "constant_norm_rescale":
            return x * x.shape[-1] ** 0.5 / x.norm(dim=-1, keepdim=True)
        return x


def one_name(hook: str) -> str:
    """What enters a block is what the one before it leaves: SAEs of both names read the same unsteered stream."""
    _, layer, point = hook.split(".", 2)
    return f"blocks.{int(layer) - 1}.hook_resid_post" if point == "hook_resid_pre" and layer != "0" else hook
