"""Checkpoints that are known and cannot be used, refused with the reason, so that nobody looks for an option that helps."""

from __future__ import annotations

import re
from pathlib import Path

from saeclamp_saes.errors import CheckpointError
from saeclamp_saes.io.checkpoint import PICKLES, READABLE, CheckpointSource, read_config
from saeclamp_saes.loaders.mwhanna import CONFIG, hook_site
from saeclamp_saes.loaders.saelens import CONFIG as CFG

TINYMODEL = r"(M|A|T|Rm|Ra|Mo)\d_S-?\d+_[BR]\d+_P\d+"
"""Names of TinyModel's sparse MLPs, such as `M0_S-1_B0_P0.pt`."""
MATCHING_PURSUIT = "matching_pursuit"


def refuse_unsupported(source: CheckpointSource) -> None:
    """Raise CheckpointError for a checkpoint that is known and refused. Opens no pickle."""
    path = source.path
    if re.fullmatch(TINYMODEL, path.stem):
        raise CheckpointError(
            f"{path} is a sparse MLP of TinyModel, a model of its own without norms that no server here runs."
        )
    if _has_weights(path):
        if source.weights.suffix in READABLE and _is_temporal(source):
            raise CheckpointError(
                f"{source.weights} is a temporal SAE, whose activations attend to the whole sequence, so that no "
                "token's can be moved alone."
            )
        if (source.config(CFG) or {}).get("architecture") == MATCHING_PURSUIT:
            raise CheckpointError(
                f"{source.weights} is a matching pursuit SAE, which finds its features one after the other, each in what "
                "the ones before leave, so that none can be moved alone."
            )
        return
    if path.suffix == ".dcp" or any(path.glob("*.dcp")) or any(path.glob("*.distcp")):
        raise CheckpointError(
            f"{path} is a torch distributed checkpoint (.dcp), whose index is a pickle: save it as safetensors with the "
            "code that trained it."
        )
    _check_kept_elsewhere(source)


def _has_weights(path: Path) -> bool:
    folders = (path, path / "checkpoints")
    return not path.is_dir() or any(
        file.suffix in READABLE + PICKLES for folder in folders for file in folder.glob("*")
    )


def _is_temporal(source: CheckpointSource) -> bool:
    names = source.tensors.shapes.keys()
    return {"D", "b"} <= names and any(name.startswith("attn_layers.") for name in names)


def _check_kept_elsewhere(source: CheckpointSource) -> None:
    """Raise CheckpointError for a set of transcoders that only lists other repositories' files."""
    cfg = read_config(source.path / CONFIG) if (source.path / CONFIG).is_file() else {}
    entries = cfg.get("transcoders")
    if not isinstance(entries, list) or not entries:
        return
    layer = min(source.options.integer("layer") or 0, len(entries) - 1)
    reads, writes = hook_site(cfg, "feature_input_hook", layer), hook_site(cfg, "feature_output_hook", layer)
    where = (
        f", with ?site={reads.point}.{reads.layer}&site_out={writes.point}.{writes.layer}" if reads and writes else ""
    )
    raise CheckpointError(
        f"{source.path} only lists files that are kept elsewhere: fetch {entries[layer]} for layer {layer} and name that "
        f"file{where}."
    )
