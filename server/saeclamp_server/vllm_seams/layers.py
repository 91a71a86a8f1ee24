"""Seams of the decoder layers: the arguments that they take, and the modules in them that are hooked."""

from __future__ import annotations

from collections.abc import Iterator

from saeclamp_server.layer_families import FAMILIES, TRANSFORMERS
from saeclamp_server.vllm_seams.seam import Seam

MODULES = {
    "LlamaDecoderLayer": "llama",
    "MistralDecoderLayer": "mistral",
    "Qwen2DecoderLayer": "qwen2",
    "Qwen3DecoderLayer": "qwen3",
    "Qwen2MoeDecoderLayer": "qwen2_moe",
    "Qwen3MoeDecoderLayer": "qwen3_moe",
    "Gemma2DecoderLayer": "gemma2",
    "Gemma3DecoderLayer": "gemma3",
    "TransformerBlock": "gpt_oss",
    "GPT2Block": "gpt2",
}
"""vLLM's module of each of its classes of layers, below `vllm.model_executor.models`."""

FORWARD = {
    "TransformerBlock": "hidden_states, positions, residual",
    "GPT2Block": "hidden_states",
}
"""Parameters of a layer's `forward`, which hooks find by their place; of all others they are those of LLaMA's."""
OF_LLAMA = "positions, hidden_states, residual"


def _seams() -> Iterator[Seam]:
    for kind, family in FAMILIES.items():
        if family is TRANSFORMERS:  # layers of another package
            continue
        hooked = {hook.module.partition(".")[0] for hook in family.hooks.values()} - {""}
        yield Seam(
            f"vllm.model_executor.models.{MODULES[kind]}",
            reads={kind: " ".join(sorted(hooked))},
            calls=(f"{kind}.forward({FORWARD.get(kind, OF_LLAMA)}, **others)",),
        )


LAYERS = (*_seams(),)
