"""
Gemma Scope of Gemma 2: `layer_20/width_16k/average_l0_71/params.npz`, without a configuration.

W_enc (d_in, d_sae), W_dec (d_sae, d_out), b_enc, b_dec, threshold (d_sae,). A JumpReLU, on the vectors as they are. The site
is said by the release alone, a folder above, such as `gemma-scope-2b-pt-res` or the Hub's
`models--google--gemma-scope-2b-pt-res`: res is the residual stream after the block, mlp what the MLP adds to it (after its
second norm), att the heads' outputs as they enter o_proj; transcoders read the normed residual stream without the norm's
gain. SAEs in `embedding` were trained on rows of the embedding before Gemma multiplies them by sqrt(d_model).
Source: the release's tutorial; loading/pretrained_sae_loaders.py of sae-lens 6.54, which leaves an embedding's b_dec as it
is stored.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple

from saeclamp_saes.errors import CheckpointError
from saeclamp_saes.io.checkpoint import CheckpointSource
from saeclamp_saes.loaders.builder import SAEBuilder
from saeclamp_saes.loaders.linear import matrix_shape
from saeclamp_saes.sae import SAE, Kind
from saeclamp_saes.sites import Point, Site

NAME = "gemma_scope"
TENSORS = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
RELEASE = re.compile(r"gemma-scope-(2b|9b|27b)-(pt|it)-(res|mlp|att|transcoders)(?![a-z])")
POINTS: dict[str, tuple[Point, Point]] = {
    "res": ("resid_post", "resid_post"),
    "mlp": ("mlp_out", "mlp_out"),
    "att": ("attn_z", "attn_z"),
    "transcoders": ("mlp_in_no_gain", "mlp_out"),
}
"""Points that a release reads and writes, by the last part of its name."""


class CheckpointName(NamedTuple):
    """The facts in a checkpoint's path."""

    release: str | None
    model_name: str | None
    layer: int | None
    embedding: bool


def matches(source: CheckpointSource) -> bool:
    """Recognise the five tensors in an npz, beside no configuration."""
    alone = source.config("config.json", "cfg.json", "config.yaml") is None
    return source.weights.suffix == ".npz" and alone and set(source.tensors.shapes) == set(TENSORS)


def read(source: CheckpointSource) -> SAE:
    """Read the weights. Raises CheckpointError, also when neither path nor options say where it belongs."""
    tensors = source.tensors
    (d_in, d_sae), d_out = matrix_shape(tensors, "W_enc"), matrix_shape(tensors, "W_dec")[1]
    vectors = {"b_enc": (d_sae,), "b_dec": (d_out,), "threshold": (d_sae,)}
    tensors.expect({"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), **vectors})
    named = parse_name(source.weights)
    reads, writes, kind = _sites(source, named)
    draft = SAEBuilder(
        encoder=tensors.transposed("W_enc", (d_in, d_sae)),
        b_enc=tensors.tensor("b_enc", (d_sae,)),
        decoder=tensors.tensor("W_dec", (d_sae, d_out)),
        b_dec=tensors.tensor("b_dec", (d_out,)),
        threshold=tensors.tensor("threshold", (d_sae,)),
    )
    if reads.point == "embed":
        draft.scale_input(1 / math.sqrt(d_in))
    return draft.finish(reads, writes, kind=kind, architecture="jumprelu", model_name=named.model_name)


def parse_name(path: Path) -> CheckpointName:
    """
    Read the innermost release of a path, and the layer below it: folders above are the user's, whatever they are called.

    The path is not resolved: the Hub's files are links to nameless ones.
    """
    parts = path.absolute().parts
    releases = [(depth, match) for depth, part in enumerate(parts) if (match := RELEASE.search(part))]
    depth, release = releases[-1] if releases else (len(parts), None)
    folders = parts[depth + 1 :]
    layer = next((match for part in reversed(folders) if (match := re.fullmatch(r"layer_(\d{1,4})", part))), None)
    return CheckpointName(
        release=release[3] if release else None,
        model_name=f"google/gemma-2-{release[1]}{'-it' if release[2] == 'it' else ''}" if release else None,
        layer=int(layer[1]) if layer else None,
        embedding=layer is None and "embedding" in folders,
    )


def _sites(source: CheckpointSource, named: CheckpointName) -> tuple[Site, Site, Kind]:
    """Find its sites and kind: sites from the user, else from the path; the kind from the path if that names a release."""
    site = source.options.site("site")
    if named.release not in (None, "transcoders"):
        site = site or _known(source, named)[0]
        return site, site, "sae"
    site_out = source.options.site("site_out")
    if named.release == "transcoders":
        known = (site, site_out) if site and site_out else _known(source, named)
        return site or known[0], site_out or known[1], "transcoder"
    if site is None:
        raise CheckpointError(
            f"{source.path}: this family's files do not say where they belong; keep them in a folder named after the "
            "release (gemma-scope-2b-pt-res, -mlp, -att or -transcoders), or add ?site=resid_post.20 (or the like), for a "
            "transcoder ?site=mlp_in_no_gain.20&site_out=mlp_out.20."
        )
    return site, site_out or site, "sae" if site_out in (None, site) else "transcoder"


def _known(source: CheckpointSource, named: CheckpointName) -> tuple[Site, Site]:
    """Find its sites from the release, and from the layer that the path or the user names."""
    if named.embedding and named.release == "res":
        return Site("embed", 0), Site("embed", 0)
    layer = named.layer if named.layer is not None else source.options.integer("layer")
    if layer is None:
        raise CheckpointError(f"{source.path}: no folder layer_N says which layer it belongs to: add ?layer=N.")
    point_in, point_out = POINTS[str(named.release)]
    return Site(point_in, layer), Site(point_out, layer)
