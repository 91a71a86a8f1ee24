"""Worker process: forward hooks that call the op, on the modules that `layer_families.py` names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from vllm.model_executor.models.utils import PPMissingLayer

from saeclamp_saes import Site
from saeclamp_server.engine.worker.ops import steer_op
from saeclamp_server.layer_families import FAMILIES, Hook

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
