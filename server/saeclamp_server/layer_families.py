"""
Sites in vLLM's model classes: the module that has each point's vector, and which of its tensors it is. Free of vLLM.

Most of vLLM's decoder layers return `(hidden, residual)`, whose sum is the residual stream. Only classes whose forward was
checked line by line are listed; any other is refused, because reading one summand for the stream gives activations that look
right and are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from saeclamp_saes.sites import POINTS, Point


class Hook(NamedTuple):
    """A site's forward hook: a module of the layer, before or after it, and the tensors that the op gets."""

    module: str
    """Path of the module within the layer; empty for the layer itself."""
    before: bool
    """True for a hook before the module, which gets its arguments; else after it, with its results."""
    hidden: int | None
    """Index of the argument (before) or result (after) that is edited. None: the module's one result."""
    residual: int | None
    """Index of the tensor that, added to it, makes the residual stream. None: not at hand, or not needed."""


class LayerFamily(NamedTuple):
    """Classes of decoder layers that are built alike."""

    layers: str
    """Path of the list of layers in the model."""
    hooks: Mapping[Point, Hook]
    """Hooks by point, in the order in which a layer reaches them."""
    aliases: Mapping[Point, Point]
    """Points that are the same vector as another point, which has the hook."""
    norm: str = ""
    """Path of the norm before the MLP, within the layer; empty where no site needs it."""

    @property
    def points(self) -> tuple[Point, ...]:
        """The points that an SAE can be at, in the order of `POINTS`."""
        return tuple(point for point in POINTS if point in self.hooks or point in self.aliases)


PRE_NORM_ALIASES: dict[Point, Point] = {"embed": "resid_pre", "attn_out_raw": "attn_out", "mlp_out_raw": "mlp_out"}

LLAMA = LayerFamily(
    # input_layernorm, self_attn, post_attention_layernorm, mlp; returns (mlp_out, residual before it)
    "model.layers",
    {
        # asked for at layer 0 alone, where there is no residual yet: later ones are the resid_post before
        "resid_pre": Hook("", before=True, hidden=1, residual=None),
        "attn_z": Hook("self_attn.o_proj", before=True, hidden=0, residual=None),
        # the norm gets the attention's output and the residual, and adds them itself
        "attn_out": Hook("post_attention_layernorm", before=True, hidden=0, residual=1),
        "resid_mid": Hook("post_attention_layernorm", before=True, hidden=0, residual=1),
        # the norm's second result is the stream that it has normed; the op divides by the root mean square
        "mlp_in_no_gain": Hook("post_attention_layernorm", before=False, hidden=1, residual=None),
        "mlp_in": Hook("mlp", before=True, hidden=0, residual=None),
        "mlp_out": Hook("", before=False, hidden=0, residual=1),
        "resid_post": Hook("", before=False, hidden=0, residual=1),
    },
    PRE_NORM_ALIASES,
    norm="post_attention_layernorm",
)
GEMMA = LayerFamily(
    # what attention and the MLP add is normed before it is added
    "model.layers",
    {
        "resid_pre": Hook("", before=True, hidden=1, residual=None),
        "attn_z": Hook("self_attn.o_proj", before=True, hidden=0, residual=None),
        "attn_out_raw": Hook("post_attention_layernorm", before=True, hidden=0, residual=None),
        "attn_out": Hook("pre_feedforward_layernorm", before=True, hidden=0, residual=1),
        "resid_mid": Hook("pre_feedforward_layernorm", before=True, hidden=0, residual=1),
        "mlp_in_no_gain": Hook("pre_feedforward_layernorm", before=False, hidden=1, residual=None),
        "mlp_in": Hook("mlp", before=True, hidden=0, residual=None),
        "mlp_out_raw": Hook("post_feedforward_layernorm", before=True, hidden=0, residual=None),
        "mlp_out": Hook("", before=False, hidden=0, residual=1),
        "resid_post": Hook("", before=False, hidden=0, residual=1),
    },
    {"embed": "resid_pre"},
    norm="pre_feedforward_layernorm",
)
GPT_OSS = LLAMA._replace(
    # as LLAMA, but its layers take the hidden states first, before the positions
    hooks={
        **LLAMA.hooks,
        "resid_pre": Hook("", before=True, hidden=0, residual=None),
        "attn_z": Hook("attn.o_proj", before=True, hidden=0, residual=None),
    }
)
GPT2 = LayerFamily(
    # the stream itself goes from layer to layer, and is the argument of ln_2
    "transformer.h",
    {
        "resid_pre": Hook("", before=True, hidden=0, residual=None),
        "attn_z": Hook("attn.c_proj", before=True, hidden=0, residual=None),
        "attn_out": Hook("attn", before=False, hidden=None, residual=None),
        "resid_mid": Hook("ln_2", before=True, hidden=0, residual=None),
        "mlp_in": Hook("mlp", before=True, hidden=0, residual=None),
        "mlp_out": Hook("mlp", before=False, hidden=None, residual=None),
        "resid_post": Hook("", before=False, hidden=None, residual=None),
    },
    {"attn_out_raw": "attn_out", "mlp_out_raw": "mlp_out"},
)
TRANSFORMERS = LayerFamily(
    # layers of the package transformers, which vLLM runs as they are; their vectors have a batch dimension of 1
    "model.layers",
    {
        "resid_pre": Hook("", before=True, hidden=0, residual=None),
        "resid_post": Hook("", before=False, hidden=None, residual=None),
    },
    {"embed": "resid_pre"},
)

FAMILIES: dict[str, LayerFamily] = {
    "LlamaDecoderLayer": LLAMA,
    "MistralDecoderLayer": LLAMA,
    "Qwen2DecoderLayer": LLAMA,
    "Qwen3DecoderLayer": LLAMA,
    "Qwen2MoeDecoderLayer": LLAMA,
    "Qwen3MoeDecoderLayer": LLAMA,
    "Gemma2DecoderLayer": GEMMA,
    "Gemma3DecoderLayer": GEMMA,
    "TransformerBlock": GPT_OSS,
    "GPT2Block": GPT2,
    "GPTNeoXLayer": TRANSFORMERS,
    "Olmo2DecoderLayer": TRANSFORMERS,
}
"""Families, by the name of the decoder layers' class."""

SUPPORTED_ARCHITECTURES: dict[str, LayerFamily] = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": LLAMA,
    "Phi3ForCausalLM": LLAMA,
    "Qwen2ForCausalLM": LLAMA,
    "Qwen3ForCausalLM": LLAMA,
    "Qwen2MoeForCausalLM": LLAMA,
    "Qwen3MoeForCausalLM": LLAMA,
    "Gemma2ForCausalLM": GEMMA,
    "Gemma3ForCausalLM": GEMMA,
    "GptOssForCausalLM": GPT_OSS,
    "GPT2LMHeadModel": GPT2,
    "GPTNeoXForCausalLM": TRANSFORMERS,
    "Olmo2ForCausalLM": TRANSFORMERS,
}
"""
Families, by the architecture that a model's configuration names: what is known before the model is loaded.

Several share vLLM's layers, so the loaded layers are looked up by their own class.
"""
