"""
Our own layout, which the converter writes: `cfg.json` and `sae_weights.safetensors`, with every fold already done.

Rows are stored as they are used, one feature a row: encoder_rows (d_sae, d_in), encoder_bias, threshold (d_sae,),
decoder_rows (d_sae, d_out), decoder_bias (d_out,), and skip (d_in, d_out) for a skip transcoder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

from saeclamp_saes.errors import CheckpointError
from saeclamp_saes.io.atomic import replace_text
from saeclamp_saes.io.checkpoint import CheckpointSource
from saeclamp_saes.io.safetensors import write_safetensors
from saeclamp_saes.loaders.builder import SAEBuilder
from saeclamp_saes.sae import SAE, InputNorm, Kind, TopK, Unit
from saeclamp_saes.sites import Site

NAME = "saeclamp"
VERSION = 1
CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"


def matches(source: CheckpointSource) -> bool:
    """Recognise our own configuration by its `format`."""
    return (source.config(CONFIG) or {}).get("format") == NAME


def read(source: CheckpointSource) -> SAE:
    """Read an SAE that `write` wrote. Raises CheckpointError."""
    cfg, tensors = source.config(CONFIG) or {}, source.tensors
    path = source.folder / CONFIG
    if cfg.get("version") != VERSION:
        raise CheckpointError(f"{path}: version {cfg.get('version')!r} of the layout is not {VERSION}.")
    rows, outs = tensors.shapes.get("encoder_rows", ()), tensors.shapes.get("decoder_rows", ())
    if len(rows) != 2 or len(outs) != 2:
        raise CheckpointError(f"{tensors.path} lacks the matrices encoder_rows and decoder_rows.")
    (d_sae, d_in), d_out = rows, outs[1]
    kind = _one_of(cfg, "kind", get_args(Kind), path)
    required = {
        "encoder_rows": (d_sae, d_in),
        "encoder_bias": (d_sae,),
        "threshold": (d_sae,),
        "decoder_rows": (d_sae, d_out),
        "decoder_bias": (d_out,),
    }
    has_skip = kind == "skip_transcoder" or (kind != "transcoder" and "skip" in tensors)
    skip = {"skip": (d_in, d_out)} if has_skip else {}
    tensors.expect({**required, **skip})
    draft = SAEBuilder(
        encoder=tensors.tensor("encoder_rows", (d_sae, d_in)),
        b_enc=tensors.tensor("encoder_bias", (d_sae,)),
        decoder=tensors.tensor("decoder_rows", (d_sae, d_out)),
        b_dec=tensors.tensor("decoder_bias", (d_out,)),
        threshold=tensors.tensor("threshold", (d_sae,)),
    )
    approximation = cfg.get("approximation")
    source.approximation = approximation if isinstance(approximation, str) else None
    unit_note = cfg.get("unit_note")
    source.unit_note = unit_note if isinstance(unit_note, str) else None
    return draft.finish(
        _sites(cfg, "reads", path),
        _sites(cfg, "writes", path),
        kind=kind,
        architecture=str(cfg.get("architecture")),
        top_k=_top_k(cfg.get("top_k"), path),
        input_norm=_input_norm(cfg.get("input_norm"), path),
        W_skip=tensors.tensor("skip", (d_in, d_out)) if skip else None,
        unit=_one_of(cfg, "unit", get_args(Unit), path),
        model_name=cfg.get("model_name"),
    )


def write(sae: SAE, folder: Path, provenance: dict[str, Any]) -> Path:
    """
    Write an SAE. The configuration comes last, so a folder with one is complete. Returns the weights' path.

    provenance: JSON-able, kept in the configuration as it is
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / WEIGHTS
    tensors = {
        "encoder_rows": sae.W_enc.T.contiguous(),
        "encoder_bias": sae.b_enc,
        "threshold": sae.threshold,
        "decoder_rows": sae.W_dec.contiguous(),
        "decoder_bias": sae.b_dec,
    }
    if sae.W_skip is not None:
        tensors["skip"] = sae.W_skip.contiguous()
    write_safetensors(tensors, weights)
    cfg = {
        "format": NAME,
        "version": VERSION,
        "kind": sae.kind,
        "architecture": sae.architecture,
        "reads": [str(site) for site in sae.reads],
        "writes": [str(site) for site in sae.writes],
        "top_k": None if sae.top_k is None else sae.top_k._asdict(),
        "input_norm": sae.input_norm._asdict(),
        "unit": sae.unit,
        "model_name": sae.model_name,
        **provenance,
    }
    replace_text(folder / CONFIG, json.dumps(cfg, indent=1) + "\n")
    return weights


def _one_of(cfg: dict[str, Any], key: str, allowed: tuple[Any, ...], path: Path) -> Any:
    if cfg.get(key) not in allowed:
        raise CheckpointError(f"{path}: {key} {cfg.get(key)!r} must be one of {', '.join(allowed)}.")
    return cfg[key]


def _sites(cfg: dict[str, Any], key: str, path: Path) -> tuple[Site, ...]:
    names = cfg.get(key)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{path}: {key} must be a list of sites.")
    try:
        return tuple(Site.parse(name) for name in names)
    except ValueError as exc:
        raise CheckpointError(f"{path}: {exc}") from None


def _top_k(value: Any, path: Path) -> TopK | None:
    try:
        top_k = None if value is None else TopK(**value)
    except TypeError:
        raise CheckpointError(f"{path}: top_k {value!r} is not k and signed.") from None
    if top_k and not (isinstance(top_k.k, int) and top_k.k > 0 and isinstance(top_k.signed, bool)):
        raise CheckpointError(f"{path}: top_k {value!r} is not k and signed.")
    return top_k


def _input_norm(value: Any, path: Path) -> InputNorm:
    try:
        norm = InputNorm(**value)
    except TypeError:
        raise CheckpointError(f"{path}: input_norm {value!r} is not what this version writes.") from None
    if not (isinstance(norm.center, bool) and norm.scale in ("none", "std", "l2") and _is_eps(norm.eps)):
        raise CheckpointError(f"{path}: input_norm {value!r} is not what this version writes.")
    return norm


def _is_eps(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value < 1
