"""Tiny random models and SAEs, made on the spot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

SPECIAL_IDS = range(17)
"""Of the packaged model's tokenizer, which tiny models get too."""


def make_sae(
    folder: Path,
    layer: int,
    d_in: int,
    d_sae: int = 64,
    seed: int = 0,
    threshold: float = 2.0,
    architecture: str = "jumprelu",
    hooks: tuple[str, ...] = ("hook_resid_post",),
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> Path:
    """
    Write a random SAE in SAELens layout, with unit decoder rows and, but in a transcoder, a b_dec that must be subtracted.

    hooks: where it reads and, if it is a transcoder, where it writes
    dtype: of the file
    """
    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    decoder = torch.nn.functional.normalize(torch.randn(d_sae, d_in), dim=1)
    tensors = {
        "W_enc": decoder.T.contiguous() + 0.1 * torch.randn(d_in, d_sae) / d_in**0.5,
        "b_enc": 0.1 * torch.randn(d_sae),
        "W_dec": decoder,
        "b_dec": 0.5 * torch.randn(d_in),
    }
    if "jumprelu" in architecture:
        tensors["threshold"] = torch.full((d_sae,), threshold)
    if architecture == "gated":
        del tensors["b_enc"]
        names = ("b_gate", "b_mag", "r_mag")
        tensors |= {name: 0.3 * torch.randn(d_sae) - (name == "b_gate") * threshold for name in names}
    if "skip" in architecture:
        tensors["W_skip"] = 0.1 * torch.randn(d_in, d_in)
    save_file({name: one.to(dtype) for name, one in tensors.items()}, folder / "sae_weights.safetensors")
    names = dict(zip(("hook_name", "hook_name_out"), (f"blocks.{layer}.{hook}" for hook in hooks), strict=False))
    settings = {
        "architecture": architecture,
        "d_in": d_in,
        "d_sae": d_sae,
        "apply_b_dec_to_input": "transcoder" not in architecture,
        "normalize_activations": "none",
        "metadata": names,
    } | ({"d_out": d_in} if "transcoder" in architecture else {})
    (folder / "cfg.json").write_text(json.dumps(settings | config))
    return folder


MOE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {}),
    "qwen2_moe": ("Qwen2MoeConfig", {**MOE, "shared_expert_intermediate_size": 64}),
    "qwen3_moe": ("Qwen3MoeConfig", MOE),
    "gemma2": ("Gemma2Config", {"query_pre_attn_scalar": 32, "sliding_window": 2048, "tie_word_embeddings": True}),
    "gemma3": ("Gemma3TextConfig", {"query_pre_attn_scalar": 32, "sliding_window": 2048, "tie_word_embeddings": True}),
    "phi3": ("Phi3Config", {"pad_token_id": 2}),
    "gpt2": ("GPT2Config", {"n_inner": 128}),
    "gpt_neox": ("GPTNeoXConfig", {"num_key_value_heads": 2}),
    "olmo2": ("Olmo2Config", {}),
    "gpt_oss": ("GptOssConfig", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 2048}),
}
"""Class of the configuration in transformers, and what it needs besides the common ones."""


SINK_ID = 77
"""A token whose vectors are a hundred times as long as those of others."""
LEFT_OUT_IDS = (*SPECIAL_IDS, SINK_ID)
"""Tokens that are neither moved nor read unless they are asked for."""


def make_model(
    folder: Path, tokenizer: Path, kind: str = "llama", num_layers: int = 4, d_model: int = 64, has_sink: bool = False
) -> Path:
    """Write a random model of a real architecture, with the tokenizer of another model, and maybe with one sink."""
    import transformers

    torch.manual_seed(1)
    config_class, special = CONFIGS[kind]
    common = {
        "vocab_size": 49152,
        "hidden_size": d_model,
        "intermediate_size": 2 * d_model,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "initializer_range": 0.2,
    }
    config = getattr(transformers, config_class)(**common | special)
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    if has_sink:
        model.get_input_embeddings().weight.data[SINK_ID] *= 1000
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tokenizer / name, folder)
    return folder
