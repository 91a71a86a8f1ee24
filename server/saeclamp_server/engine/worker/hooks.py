"""
Worker process: where each of our sites is in vLLM's model classes.

Most of vLLM's decoder layers return `(hidden, residual)`, whose sum is the stream. Only classes whose forward was checked
line by line are listed; any other is refused, because reading one summand for the stream gives activations that look right
and are not.
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
    """One place where the op is called: which module of the layer, before or after it, with which of its tensors."""

    module: str
    """Within the layer; empty for the layer itself."""
    before: bool
    hidden: int | None
    """Which of the module's arguments (before) or results (after) is edited. None: its one result."""
    residual: int | None
    """Which one, added to it, is the residual stream. None: not at hand."""


class LayerFamily(NamedTuple):
    """Decoder layers that are built alike."""

    layers: str
    """Path of their list in the model."""
    hooks: Mapping[Point, Hook]
    """In the order in which a layer reaches them."""
    aliases: Mapping[Point, Point]
    """Points where nothing stands between one and another."""
    norm: str = ""
    """The norm before the MLP."""


PRE_NORM_ALIASES: dict[Point, Point] = {"embed": "resid_pre", "attn_out_raw": "attn_out", "mlp_out_raw": "mlp_out"}

LLAMA = LayerFamily(
    # input_layernorm, self_attn, post_attention_layernorm, mlp; returns (mlp_out, residual before it)
    "model.layers",
    {
        "resid_pre": Hook("", before=True, hidden=1, residual=None),
        "attn_z": Hook("self_attn.o_proj", before=True, hidden=0, residual=None),
        "attn_out": Hook("post_attention_layernorm", before=True, hidden=0, residual=1),
        "resid_mid": Hook("post_attention_layernorm", before=True, hidden=0, residual=1),
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
"""By the class of the decoder layers."""

WHOLE_STREAM = {"resid_pre", "resid_mid", "resid_post"}
"""Points whose vector is the sum of both tensors; at the others it is `hidden` alone."""


class UnsupportedLayerError(RuntimeError):
    """The model's decoder layers are not of a class whose sites we know, or have no such site."""


class SiteHooks:
    """The sites of one loaded model."""

    def __init__(self, model: nn.Module) -> None:
        """Raises UnsupportedLayerError."""
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
        """Return the site under the one name that its place has here. Raises UnsupportedLayerError."""
        point = self._family.aliases.get(site.point, site.point)
        if point not in self._family.hooks:
            raise UnsupportedLayerError(
                f"This model has no {site.point} that can be steered; it has {', '.join(self._family.hooks)}."
            )
        return site._replace(point=point)

    def sort_sites(self, sites: Sequence[Site]) -> list[Site]:
        """Sort distinct places as the forward pass reaches them."""
        order = [*self._family.hooks]
        return sorted(
            {self.canonical_site(site) for site in sites}, key=lambda site: (site.layer, order.index(site.point))
        )

    def attach(self, sites: Sequence[Site]) -> None:
        """
        Call the op at each site of this process's layers, with the site's number in the sequence. Must run before vLLM
        compiles.

        sites: as `sort_sites` returns them, so that the hooks of one module run in the order of their places
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
        """Whether the residual stream is at hand where the site is."""
        place = self.canonical_site(site)
        return place.point in WHOLE_STREAM or self._family.hooks[place.point].residual is not None

    def norm_eps(self, site: Site) -> float | None:
        """Return what the norm before the MLP adds to the mean square, where a site that is here is its bare result."""
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
