"""Sites for vectors. They are fixed at the start, because hooks are attached before the model is compiled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from saeclamp_saes import SAEEntry, Site
from saeclamp_server.layer_families import SUPPORTED_ARCHITECTURES
from saeclamp_server.model_info import ModelInfo, StartupError

ALL = "all"
"""Word of `--vector-site` for `resid_post` behind every layer."""

UNHELD = "mlp_in_no_gain"
"""Point that SAEs can read, but whose vectors exist nowhere in the model, so that they cannot be edited."""


class VectorSite(NamedTuple):
    """A site with room for vectors."""

    site: Site
    width: int
    """Width of the vectors there."""
    capacity: int
    """Number of vectors that the site has room for."""

    @property
    def bank_name(self) -> str:
        """Name of the site's vector bank in the engine, which no SAE can have."""
        return f"vectors@{self.site}"


def vector_sites(
    asked: Sequence[str], capacity: int, saes: Mapping[str, SAEEntry], model: ModelInfo
) -> tuple[VectorSite, ...]:
    """
    Find the sites of the loaded SAEs and those that were asked for, in the order in which a forward pass reaches them.

    asked: such as `resid_post.12`, or `all`
    Raises StartupError.
    """
    sites = {site for text in asked for site in _asked(text, model)}
    sites |= {site for sae in saes.values() for site in (*sae.summary.reads, *sae.summary.writes)}
    held = sorted((site for site in sites if site.point != UNHELD), key=lambda site: site.order)
    # an SAE's sites are hooked anyhow, so vectors there cost their rows alone
    return tuple(VectorSite(site, model.width(site), capacity) for site in held) if capacity else ()


def _asked(text: str, model: ModelInfo) -> Iterator[Site]:
    if text == ALL:
        yield from (Site("resid_post", layer) for layer in range(model.num_layers))
        return
    try:
        site = Site.parse(text)
    except ValueError as exc:
        raise StartupError(f"--vector-site: {exc}") from exc
    points = [point for point in SUPPORTED_ARCHITECTURES[model.architecture].points if point != UNHELD]
    if site.point not in points:
        raise StartupError(f"--vector-site {text}: a {model.architecture} can be steered at {', '.join(points)}.")
    if site.layer >= model.num_layers:
        raise StartupError(f"--vector-site {text}: {model.path} has layers 0 to {model.num_layers - 1}.")
    yield site
