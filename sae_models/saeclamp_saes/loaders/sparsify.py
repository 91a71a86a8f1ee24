"""
EleutherAI's sparsify: a folder per module, such as `layers.5.mlp`, with `cfg.json` and `sae.safetensors`.

encoder.weight (d_sae, d_in), encoder.bias, W_dec (d_sae, d_in), b_dec; W_skip (out, in) with `skip_connection`. TopK after
`x - b_dec`, or after x itself with `transcode`; decode adds W_skip x, of the x that nothing was subtracted from. The name of
the folder is the module, whose output is read and written; a transcoder reads its input. A run with several seeds keeps
them in `layers.5/seed0` and the like. Early transcoders were saved without `transcode` and do subtract b_dec: their skip
connection, or the run's `config.json` one folder up, tells them.
Source: sparsify/sparse_coder.py, config.py, fused_encoder.py, and sae/sae.py for `signed`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from saeclamp_saes.errors import CheckpointError
from saeclamp_saes.io.checkpoint import CheckpointSource, positive_int, read_config
from saeclamp_saes.io.tensors import Shape
from saeclamp_saes.loaders.builder import SAEBuilder
from saeclamp_saes.loaders.linear import matrix_shape
from saeclamp_saes.sae import SAE, Kind, TopK
from saeclamp_saes.sites import Site, from_hugging_face

NAME = "sparsify"
CONFIG = "cfg.json"
SEED = re.compile(r"seed\d+")
"""A folder inside the module's, where a run has several seeds."""
UNSUPPORTED = ("embed_skip", "gram_lookup", "normalize_io")
"""Flags of experiments whose equations need more than this module's vectors."""


def matches(source: CheckpointSource) -> bool:
    """Recognise an nn.Linear encoder with a bare decoder matrix, which only this family has."""
    return source.config(CONFIG) is not None and source.has("encoder.weight", "encoder.bias", "W_dec", "b_dec")


def read(source: CheckpointSource) -> SAE:
    """Read the weights and fold what is constant. Raises CheckpointError."""
    cfg, path, tensors = source.config(CONFIG) or {}, source.folder / CONFIG, source.tensors
    _check(cfg, path)
    d_sae, d_in = matrix_shape(tensors, "encoder.weight")  # `expansion_factor` is a default that num_latents overrides
    if (positive_int(cfg, "d_in", path), cfg.get("num_latents") or d_sae) != (d_in, d_sae):
        raise CheckpointError(f"{path}: d_in and num_latents are not those of the weights, {d_in} and {d_sae}.")
    skip: dict[str, Shape] = {"W_skip": (d_in, d_in)} if cfg.get("skip_connection") else {}
    matrix = (d_sae, d_in)
    tensors.expect({"encoder.weight": matrix, "encoder.bias": (d_sae,), "W_dec": matrix, "b_dec": (d_in,), **skip})
    b_dec = tensors.tensor("b_dec", (d_in,))
    draft = SAEBuilder(
        encoder=tensors.tensor("encoder.weight", matrix),
        b_enc=tensors.tensor("encoder.bias", (d_sae,)),
        decoder=tensors.tensor("W_dec", matrix),
        b_dec=b_dec,
    )
    if not cfg.get("transcode"):
        draft.subtract_from_input(b_dec)
    run = _run_config(source)
    kind = _kind(cfg, run)
    signed = bool(cfg.get("signed"))
    return draft.finish(
        *_sites(source, kind),
        kind=kind,
        architecture="abstopk" if signed else "topk",
        top_k=TopK(positive_int(cfg, "k", path), signed=signed),
        W_skip=tensors.transposed("W_skip", (d_in, d_in)) if skip else None,
        model_name=run.get("model"),
    )


def _check(cfg: dict[str, Any], path: Path) -> None:
    activation = cfg.get("activation", "topk")
    if activation != "topk":
        raise CheckpointError(f"{path}: activation {activation!r} is not supported; supported: topk.")
    flags = [flag for flag in UNSUPPORTED if cfg.get(flag)]
    if flags:
        raise CheckpointError(f"{path}: {', '.join(flags)} is not supported.")


def _run_config(source: CheckpointSource) -> dict[str, Any]:
    """Read the configuration of the training run, which lies above the modules' folders; empty if there is none."""
    folder = source.weights.absolute().parent
    path = (folder.parent if SEED.fullmatch(folder.name) else folder).parent / "config.json"
    if not path.is_file():
        return {}
    source.configs[path] = None
    return read_config(path)


def _kind(cfg: dict[str, Any], run: dict[str, Any]) -> Kind:
    """Find the kind, by `transcode`; in earlier files, which lack it, by a skip connection or the run's configuration."""
    skips = bool(cfg.get("skip_connection"))
    stated = cfg.get("transcode")
    if not (skips or run.get("transcode") if stated is None else stated):
        return "sae"
    return "skip_transcoder" if skips else "transcoder"


def _sites(source: CheckpointSource, kind: Kind) -> tuple[Site, Site]:
    folder = source.weights.absolute().parent
    module = folder.parent.name if SEED.fullmatch(folder.name) else folder.name
    output = from_hugging_face(module)
    if kind == "sae":
        reads = source.site(output)
        return reads, reads
    return source.site(from_hugging_face(f"{module}.input")), source.site_out(output)
