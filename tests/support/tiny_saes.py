"""Small random SAEs of every architecture."""

from __future__ import annotations

from typing import Any

D_IN, D_SAE, NUM_TOKENS = 48, 96, 7


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "relu": {"architecture": "standard"},
    "relu without pre-bias": {"architecture": "standard", "apply_b_dec_to_input": False},
    "jumprelu": {"architecture": "jumprelu"},
    "topk": {"architecture": "topk", "k": 9},
    "abstopk": {"architecture": "abstopk", "k": 9},
    "gated": {"architecture": "gated"},
    "layer norm": {"architecture": "jumprelu", "normalize_activations": "layer_norm"},
    "layer norm and topk": {"architecture": "topk", "k": 9, "normalize_activations": "layer_norm"},
    "constant norm": {"architecture": "standard", "normalize_activations": "constant_norm_rescale"},
    "transcoder": {"architecture": "transcoder", "hooks": ("mlp.hook_in", "hook_mlp_out")},
    "jumprelu skip transcoder": {"architecture": "jumprelu_skip_transcoder", "hooks": ("mlp.hook_in", "hook_mlp_out")},
}
