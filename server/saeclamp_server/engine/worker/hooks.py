"""
Worker process: forward hooks that call the op, and the module and tensors of each site in vLLM's model classes.

Most of vLLM's decoder layers return `(hidden, residual)`, whose sum is the residual stream. Only classes whose forward was
checked line by line are listed; any other is refused, because reading one summand for the stream gives activations that look
right and are not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from vllm.model_executor.models.utils import PPMissingLayer

from saeclamp_saes import Site
from saeclamp_saes.sites import Point
from saeclamp_server.engine.worker.ops import steer_op


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

WHOLE_STREAM = {"resid_pre", "resid_mid", "resid_post"}
"""Points whose vector is the sum of both tensors; at the others it is `hidden` alone."""


class UnsupportedLayerError(RuntimeError):
    """The model's decoder layers are of a class that is not supported, or have no such site."""


class SiteHooks:
    """Sites of one loaded model, and the hooks on them."""

    def __init__(self, model: nn.Module) -> None:
        """Find the model's decoder layers and their family. Raises UnsupportedLayerError."""
        for path in dict.fromkeys(family.layers for family in FAMILIES.values()):
            try:
                layers = [*model.get_submodule(path).children()]
            except AttributeError:
                continue
            # the layers of the other pipeline stages are placeholders
            self._layers = {n: layer for n, layer in enumerate(layers) if not isinstance(layer, PPMissingLayer)}
            kind = type(next(iter(self._layers.values()), None)).__name__
            if kind in FAMILIES and FAMILIES[kind].layers == path:
                self._family = FAMILIES[kind]
                return
            raise UnsupportedLayerError(
                f"Layers of class {kind} are not supported; supported: {', '.join(sorted(FAMILIES))}."
            )
        raise UnsupportedLayerError(f"{type(model).__name__} has no decoder layers where they are known to be.")

    @property
    def layers(self) -> range:
        """The model's layers that are in this process; the others are those of other pipeline stages."""
        return range(min(self._layers), max(self._layers) + 1)

    def canonical_site(self, site: Site) -> Site:
        """Return the site under the one name that its vector has in this model. Raises UnsupportedLayerError."""
        point = self._family.aliases.get(site.point, site.point)
        if point not in self._family.hooks:
            raise UnsupportedLayerError(
                f"This model has no {site.point} that can be steered; it has {', '.join(self._family.hooks)}."
            )
        return site._replace(point=point)

    def sort_sites(self, sites: Sequence[Site]) -> list[Site]:
        """Return the distinct sites in the order in which a forward pass reaches them, under their canonical names."""
        order = [*self._family.hooks]
        return sorted(
            {self.canonical_site(site) for site in sites}, key=lambda site: (site.layer, order.index(site.point))
        )

    def attach(self, sites: Sequence[Site]) -> None:
        """
        Hook the op to each site of this process's layers, with the site's number in the sequence.

        Must run before vLLM compiles, because the op is traced with the layer.

        sites: as `sort_sites` returns them, so that several hooks of one module run in the order of their sites
        """
        for number, site in enumerate(sites):
            layer = self._layers.get(site.layer)
            if layer is None:
                continue
            hook = self._family.hooks[site.point]
            module = layer.get_submodule(hook.module) if hook.module else layer
            if hook.before:
                module.register_forward_pre_hook(_before(hook, number))
            else:
                module.register_forward_hook(_after(hook, number))

    def has_resid(self, site: Site) -> bool:
        """Tell whether the residual stream is at hand at the site, to measure edits by."""
        place = self.canonical_site(site)
        return place.point in WHOLE_STREAM or self._family.hooks[place.point].residual is not None

    def norm_eps(self, site: Site) -> float | None:
        """Return the epsilon of the norm before the MLP for a site `mlp_in_no_gain` of this process; None for others."""
        if site.point != "mlp_in_no_gain" or site.layer not in self._layers:
            return None
        return float(self._layers[site.layer].get_submodule(self._family.norm).variance_epsilon)  # type: ignore[arg-type]


def _before(hook: Hook, number: int) -> Callable[[nn.Module, tuple[Tensor | None, ...]], None]:
    def call(module: nn.Module, args: tuple[Tensor | None, ...]) -> None:
        _steer(args, hook, number)

    return call


def _after(hook: Hook, number: int) -> Callable[[nn.Module, object, Any], None]:
    def call(module: nn.Module, args: object, output: Any) -> None:
        _steer(output, hook, number)

    return call


def _steer(tensors: Any, hook: Hook, number: int) -> None:
    hidden = tensors if hook.hidden is None else tensors[hook.hidden]
    if hidden.dim() == 3:  # a layer of transformers; the flat view is of the same memory
        hidden = hidden.view(-1, hidden.shape[-1])
    steer_op(hidden, None if hook.residual is None else tensors[hook.residual], number)
