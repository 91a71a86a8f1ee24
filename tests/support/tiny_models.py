"""Tiny random models of each architecture, and what their blocks compute, written out from the raw weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

VOCABULARY = 97
WIDTH = 16
NUM_LAYERS = 3

Function = Callable[[Any, Tensor], Tensor]
"""Of a block and vectors."""


class Architecture(NamedTuple):
    """A small configuration, and the published equations of a block's second half."""

    config: str
    model: str
    sizes: dict[str, Any]
    o_proj: Function
    """What attention's heads give -> output of the projection"""
    after_attention: Function
    """-> what is added to the stream"""
    before_mlp: Function
    """The stream -> what the MLP reads"""
    without_gain: Function | None
    mlp: Function
    after_mlp: Function
    parallel: bool = False


def same(block: Any, x: Tensor) -> Tensor:
    return x


def unit_rms(block: Any, x: Tensor) -> Tensor:
    return x / (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()


def standardized(block: Any, x: Tensor) -> Tensor:
    return (x - x.mean(dim=-1, keepdim=True)) / (x.var(dim=-1, keepdim=True, unbiased=False) + 1e-5).sqrt()


def rms(name: str, offset: float = 0.0) -> Function:
    return lambda block, x: unit_rms(block, x) * (offset + block.get_submodule(name).weight)


def layer_norm(name: str) -> Function:
    def apply(block: Any, x: Tensor) -> Tensor:
        norm = block.get_submodule(name)
        return standardized(block, x) * norm.weight + norm.bias

    return apply


def linear(name: str) -> Function:
    def apply(block: Any, x: Tensor) -> Tensor:
        module = block.get_submodule(name)
        # gpt2's are stored the other way round
        weight = module.weight.T if type(module).__name__ == "Conv1D" else module.weight
        out = torch.einsum("oi,bti->bto", weight, x)
        return out if getattr(module, "bias", None) is None else out + module.bias

    return apply


def gated(activation: Callable[[Tensor], Tensor]) -> Function:
    def apply(block: Any, x: Tensor) -> Tensor:
        gate, up = linear("mlp.gate_proj")(block, x), linear("mlp.up_proj")(block, x)
        return linear("mlp.down_proj")(block, activation(gate) * up)

    return apply


def fused_gate(block: Any, x: Tensor) -> Tensor:
    gate, up = linear("mlp.gate_up_proj")(block, x).chunk(2, dim=-1)
    return linear("mlp.down_proj")(block, F.silu(gate) * up)


def two_layers(first: str, second: str, activation: Callable[[Tensor], Tensor]) -> Function:
    return lambda block, x: linear(second)(block, activation(linear(first)(block, x)))


def gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24, "rms_norm_eps": 1e-6}
PRE_NORM = {
    "o_proj": linear("self_attn.o_proj"),
    "after_attention": same,
    "before_mlp": rms("post_attention_layernorm"),
    "without_gain": unit_rms,
    "mlp": gated(F.silu),
    "after_mlp": same,
}
GEMMA = {
    "o_proj": linear("self_attn.o_proj"),
    "after_attention": rms("post_attention_layernorm", 1.0),
    "before_mlp": rms("pre_feedforward_layernorm", 1.0),
    "without_gain": unit_rms,
    "mlp": gated(gelu_tanh),
    "after_mlp": rms("post_feedforward_layernorm", 1.0),
}
NEOX = {
    "o_proj": linear("attention.dense"),
    "after_attention": same,
    "before_mlp": layer_norm("post_attention_layernorm"),
    "without_gain": standardized,
    "mlp": two_layers("mlp.dense_h_to_4h", "mlp.dense_4h_to_h", F.gelu),
    "after_mlp": same,
}
NEOX_SIZES = {"num_attention_heads": 4, "intermediate_size": 24}

ARCHITECTURES = {
    "llama": Architecture("LlamaConfig", "LlamaForCausalLM", GROUPED, **PRE_NORM),
    "mistral": Architecture("MistralConfig", "MistralForCausalLM", GROUPED, **PRE_NORM),
    "qwen2": Architecture("Qwen2Config", "Qwen2ForCausalLM", GROUPED, **PRE_NORM),
    "qwen3": Architecture("Qwen3Config", "Qwen3ForCausalLM", GROUPED | {"head_dim": 8}, **PRE_NORM),
    "phi3": Architecture("Phi3Config", "Phi3ForCausalLM", GROUPED, **(PRE_NORM | {"mlp": fused_gate})),
    "gemma2": Architecture("Gemma2Config", "Gemma2ForCausalLM", GROUPED | {"head_dim": 8}, **GEMMA),
    "gemma3": Architecture("Gemma3TextConfig", "Gemma3ForCausalLM", GROUPED | {"head_dim": 8}, **GEMMA),
    "olmo2": Architecture(
        "Olmo2Config",
        "Olmo2ForCausalLM",
        GROUPED,
        o_proj=linear("self_attn.o_proj"),
        after_attention=rms("post_attention_layernorm"),
        before_mlp=same,
        without_gain=None,
        mlp=gated(F.silu),
        after_mlp=rms("post_feedforward_layernorm"),
    ),
    "gpt2": Architecture(
        "GPT2Config",
        "GPT2LMHeadModel",
        {"n_head": 4},
        o_proj=linear("attn.c_proj"),
        after_attention=same,
        before_mlp=layer_norm("ln_2"),
        without_gain=standardized,
        mlp=two_layers("mlp.c_fc", "mlp.c_proj", gelu_tanh),
        after_mlp=same,
    ),
    "gpt-neox": Architecture("GPTNeoXConfig", "GPTNeoXForCausalLM", NEOX_SIZES, **NEOX, parallel=True),
    "gpt-neox-serial": Architecture(
        "GPTNeoXConfig", "GPTNeoXForCausalLM", NEOX_SIZES | {"use_parallel_residual": False}, **NEOX
    ),
}


def make(name: str, width: int = WIDTH, num_layers: int = NUM_LAYERS, seed: int = 0) -> nn.Module:
    """Random weights everywhere, in norms and biases too, so that leaving one out shows."""
    architecture = ARCHITECTURES[name]
    config = getattr(transformers, architecture.config)(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=num_layers,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        **architecture.sizes,
    )
    model: nn.Module = getattr(transformers, architecture.model)(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        spread = 0.3 if parameter.dim() == 1 else parameter.shape[-1] ** -0.5
        noise = spread * torch.randn(parameter.shape, generator=generator)
        parameter.data = parameter.data + noise if parameter.dim() == 1 else noise
    return model


def sequences(num: int = 3, length: int = 11, seed: int = 1) -> list[Tensor]:
    """Random token ids without 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, VOCABULARY, (length,), generator=generator) for _ in range(num)]
