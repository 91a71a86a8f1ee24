"""The sites of `sites.py` in transformers' models: a table of modules, and hooks that read and change a site's vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from saeclamp_saes.errors import VerificationError
from saeclamp_saes.sites import Site

Edit = Callable[[Tensor], Tensor | None]
"""Takes a site's vectors during a forward, (batch, sequence, width); returns their replacement, or None to keep them."""


class ModelLayout(NamedTuple):
    """Names of a model's modules; from `attn_proj` to `mlp_out` they are relative to a block."""

    blocks: str
    embed: str
    attn_proj: str
    """Its input is `attn_z`, its output `attn_out_raw`."""
    attn_out: str
    """Its output is what attention adds to the residual stream."""
    mlp_norm: str | None
    """Its output is `mlp_in`; None where the MLP reads the residual stream as it is."""
    mlp: str
    """Its output is `mlp_out_raw`."""
    mlp_out: str
    """Its output is what the MLP adds to the residual stream."""
    final_norm: str
    """Norm between the last block and the unembedding; a path in the model."""


PRE_NORM = ModelLayout(
    blocks="model.layers",
    embed="model.embed_tokens",
    attn_proj="self_attn.o_proj",
    attn_out="self_attn.o_proj",
    mlp_norm="post_attention_layernorm",
    mlp="mlp",
    mlp_out="mlp",
    final_norm="model.norm",
)
SANDWICH_NORM = PRE_NORM._replace(
    attn_out="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_out="post_feedforward_layernorm",
)

LAYOUTS: dict[str, ModelLayout] = {
    "LlamaForCausalLM": PRE_NORM,
    "MistralForCausalLM": PRE_NORM,
    "Qwen2ForCausalLM": PRE_NORM,
    "Qwen3ForCausalLM": PRE_NORM,
    "Phi3ForCausalLM": PRE_NORM,
    "Gemma2ForCausalLM": SANDWICH_NORM,
    "Gemma3ForCausalLM": SANDWICH_NORM,
    "Gemma3ForConditionalGeneration": SANDWICH_NORM._replace(
        blocks="model.language_model.layers",
        embed="model.language_model.embed_tokens",
        final_norm="model.language_model.norm",
    ),
    "Olmo2ForCausalLM": SANDWICH_NORM._replace(mlp_norm=None),
    "GPT2LMHeadModel": ModelLayout(
        blocks="transformer.h",
        embed="transformer.wte",
        attn_proj="attn.c_proj",
        attn_out="attn.c_proj",
        mlp_norm="ln_2",
        mlp="mlp",
        mlp_out="mlp",
        final_norm="transformer.ln_f",
    ),
    "GPTNeoXForCausalLM": ModelLayout(
        blocks="gpt_neox.layers",
        embed="gpt_neox.embed_in",
        attn_proj="attention.dense",
        attn_out="attention.dense",
        mlp_norm="post_attention_layernorm",
        mlp="mlp",
        mlp_out="mlp",
        final_norm="gpt_neox.final_layer_norm",
    ),
}
"""Layouts by the name of the model's class."""


class Block(NamedTuple):
    """The modules of one block of a loaded model."""

    whole: nn.Module
    attn_proj: nn.Module
    attn_out: nn.Module
    mlp_norm: nn.Module | None
    mlp: nn.Module
    mlp_out: nn.Module
    parallel: bool
    """True if attention and MLP both read what enters the block (GPT-NeoX), so that it has no `resid_mid`."""
    eps: float
    """Epsilon of the model's RMS norms; 0 for a model with layer norms, which have their own."""


@contextmanager
def apply_edits(model: nn.Module, edits: Mapping[Site, Edit]) -> Iterator[None]:
    """Read or change vectors at sites while the model runs. Raises VerificationError for a site it does not have."""
    with ExitStack() as stack:
        for site, edit in edits.items():
            for handle in _attach(model, site, edit):
                stack.callback(handle.remove)
        yield


def has_site(model: nn.Module, site: Site) -> bool:
    """Tell whether the model has that site."""
    try:
        with apply_edits(model, {site: lambda x: None}):
            return True
    except VerificationError:
        return False


def norm_gain(norm: nn.Module, dtype: torch.dtype) -> Tensor:
    """
    Return what a norm multiplies by, (width,).

    Models store an RMS norm's gain in several ways (Gemma's is one plus the weight), and all of them give it for a vector of
    equal numbers, which are large beside the norm's epsilon.

    dtype: in which the norm computes; vLLM's takes its weight's alone
    """
    weight = norm.weight
    assert isinstance(weight, Tensor)
    if isinstance(norm, nn.LayerNorm):
        return weight.detach().to(dtype)
    # `forward` itself, so that no hook sees it
    gain: Tensor = norm.forward(torch.full_like(weight, 1000.0, dtype=dtype)[None])[0]
    return gain.detach()


def num_blocks(model: nn.Module) -> int:
    """Return the number of blocks. Raises VerificationError for an architecture that is not in the table."""
    blocks = model.get_submodule(_layout(model).blocks)
    assert isinstance(blocks, nn.ModuleList)
    return len(blocks)


def _layout(model: nn.Module) -> ModelLayout:
    name = type(model).__name__
    if name not in LAYOUTS:
        raise VerificationError(
            f"It is not known where the places of a {name} are, so no SAE can be measured on it; known: "
            f"{', '.join(LAYOUTS)}."
        )
    return LAYOUTS[name]


def _block(model: nn.Module, layer: int) -> Block:
    layout, config = _layout(model), model.config.get_text_config()  # type: ignore[operator, union-attr]
    if layer >= num_blocks(model):
        raise VerificationError(f"There is no layer {layer}: the model has layers 0 to {num_blocks(model) - 1}.")
    whole = model.get_submodule(f"{layout.blocks}.{layer}")
    return Block(
        whole=whole,
        attn_proj=whole.get_submodule(layout.attn_proj),
        attn_out=whole.get_submodule(layout.attn_out),
        mlp_norm=None if layout.mlp_norm is None else whole.get_submodule(layout.mlp_norm),
        mlp=whole.get_submodule(layout.mlp),
        mlp_out=whole.get_submodule(layout.mlp_out),
        parallel=config.model_type == "gpt_neox" and config.use_parallel_residual,
        eps=config.to_dict().get("rms_norm_eps", 0.0),
    )


def _attach(model: nn.Module, site: Site, edit: Edit) -> list[RemovableHandle]:
    if site.point in ("embed", "resid_pre") and site.layer > 0:
        raise VerificationError(f"There is no {site}: only layer 0 has {site.point}.")
    block = _block(model, site.layer)
    match site.point:
        case "embed":
            return [_on_output(model.get_submodule(_layout(model).embed), edit)]
        case "resid_pre":
            return [_on_input(block.whole, edit)]
        case "resid_mid" if not block.parallel:
            return _between_attention_and_mlp(block, edit)
        case "resid_post":
            return [_on_output(block.whole, edit)]
        case "attn_z":
            return [_on_input(block.attn_proj, edit)]
        case "attn_out_raw":
            return [_on_output(block.attn_proj, edit)]
        case "attn_out":
            return [_on_output(block.attn_out, edit)]
        case "mlp_in":
            return [_on_input(block.mlp, edit)]
        case "mlp_in_no_gain" if block.mlp_norm is not None:
            return [_before_the_gain(block.mlp_norm, block.eps, edit)]
        case "mlp_out_raw":
            return [_on_output(block.mlp, edit)]
        case "mlp_out":
            return [_on_output(block.mlp_out, edit)]
    raise VerificationError(f"A {type(model).__name__} has no {site.point}.")


def _on_input(module: nn.Module, edit: Edit) -> RemovableHandle:
    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        new = edit(args[0])
        return None if new is None else (new, *args[1:])

    return module.register_forward_pre_hook(hook)


def _on_output(module: nn.Module, edit: Edit) -> RemovableHandle:
    return module.register_forward_hook(lambda _, args, output: edit(output))


def _between_attention_and_mlp(block: Block, edit: Edit) -> list[RemovableHandle]:
    """Edit `resid_mid`, a sum inside the block's own code, by changing what attention adds to it."""
    entering: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        entering[:] = [args[0]]

    def hook(_: nn.Module, args: object, attn_out: Tensor) -> Tensor | None:
        # popped, so that the tensor does not live on after the forward
        mid = entering.pop() + attn_out
        new = edit(mid)
        return None if new is None else attn_out + (new - mid)

    return [block.whole.register_forward_pre_hook(keep), block.attn_out.register_forward_hook(hook)]


def _before_the_gain(norm: nn.Module, eps: float, edit: Edit) -> RemovableHandle:
    """Edit a norm's vectors before it multiplies by its learned gain (and adds its bias, if it is a layer norm)."""

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        x = args[0].float()
        if isinstance(module, nn.LayerNorm):
            x, eps_here = x - x.mean(dim=-1, keepdim=True), module.eps
        else:
            eps_here = eps
        normed = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps_here)
        new = edit(normed)
        if new is None:
            return None
        scaled = new * norm_gain(module, new.dtype)
        return (scaled + module.bias if isinstance(module, nn.LayerNorm) else scaled).to(output.dtype)

    return norm.register_forward_hook(hook)
