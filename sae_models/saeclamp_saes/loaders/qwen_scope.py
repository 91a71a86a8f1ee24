"""
Qwen-Scope: `layer<n>.sae.pt` files, one a block, in a repository called `SAE-Res-<model>-W<width>K-L0_<k>`.

W_enc (d_sae, d_in), W_dec (d_in, d_sae), b_enc, b_dec: both matrices the other way round than SAELens stores them. TopK of
the residual stream after the block; nothing is subtracted or normalised. `config.json` gives k and the base model; where it
was not downloaded, so does the repository's name.
Source: the model cards, arXiv 2605.11887, and loading/pretrained_sae_loaders.py of sae-lens 6.54.
"""

from __future__ import annotations

import re
from typing import Any

from saeclamp_saes.errors import CheckpointError
from saeclamp_saes.io.checkpoint import CheckpointSource, positive_int
from saeclamp_saes.loaders.linear import matrix_shape, read_linear
from saeclamp_saes.sae import SAE, TopK
from saeclamp_saes.sites import Site

NAME = "qwen_scope"
CONFIG = "config.json"
TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec")
LAYER = re.compile(r"layer(\d{1,4})\.sae\.")
"""Beginning of a file's name."""


def matches(source: CheckpointSource) -> bool:
    """Recognise turned matrices, beside this family's configuration, or beside none under one of its names."""
    shapes = source.tensors.shapes
    if shapes.keys() != set(TENSORS):
        return False
    turned = shapes["W_enc"] == shapes["b_enc"] + shapes["b_dec"] == shapes["W_dec"][::-1]
    if not turned or _config(source) is not None:
        return turned
    own = LAYER.match(source.weights.name) is not None or _repository(source) is not None
    return own and source.config(CONFIG, "cfg.json", "config.yaml") is None


def read(source: CheckpointSource) -> SAE:
    """Read the weights. Raises CheckpointError."""
    d_sae, d_in = matrix_shape(source.tensors, "W_enc")
    cfg = _config(source)
    if d_sae == d_in and cfg is None and source.options.text("format") is None:
        raise CheckpointError(
            f"{source.path}: W_enc is square, so it cannot be seen which way round it is stored: "
            f"add ?format={NAME} if it is (d_sae, d_in) and W_dec (d_in, d_sae), or another family's ?format=."
        )
    repository = _repository(source)
    return read_linear(source.tensors, *TENSORS).finish(
        source.site(_site(source, cfg)),
        architecture="topk",
        top_k=TopK(_k(source, cfg, repository)),
        model_name=cfg.get("base_model") if cfg else repository and repository[1],
    )


def _config(source: CheckpointSource) -> dict[str, Any] | None:
    cfg = source.config(CONFIG)
    return cfg if cfg and cfg.get("model_type") == "topk_sae" else None


def _repository(source: CheckpointSource) -> re.Match[str] | None:
    """Find the repository's name among the folders, also in the hub's cache, where it is three folders up."""
    return re.search(r"SAE-Res-([\w.-]+)-W\d+K-L0_(\d+)(?![^/])", str(source.weights.absolute().parent))


def _k(source: CheckpointSource, cfg: dict[str, Any] | None, repository: re.Match[str] | None) -> int:
    if cfg and "k" in cfg:
        return positive_int(cfg, "k", source.folder / CONFIG)
    k = int(repository[2]) if repository else source.options.integer("k")
    if not k:
        raise CheckpointError(
            f"{source.path} does not say how many activations it keeps: add ?k=50 or ?k=100, the number after L0_ in its "
            "repository's name."
        )
    return k


def _site(source: CheckpointSource, cfg: dict[str, Any] | None) -> Site | None:
    layer = LAYER.match(source.weights.name)
    elsewhere = cfg is not None and cfg.get("hook_point", "resid_post") != "resid_post"
    return Site("resid_post", int(layer[1])) if layer and not elsewhere else None
