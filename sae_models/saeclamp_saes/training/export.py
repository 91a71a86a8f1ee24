"""Export of a trained SAE in SAELens 6's layout, with the scale folded, and with metrics of the numbers in the files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from saeclamp_saes.errors import TrainingError
from saeclamp_saes.io.atomic import replacing
from saeclamp_saes.io.safetensors import write_safetensors
from saeclamp_saes.io.work_folder import write_json
from saeclamp_saes.loaders.builder import SAEBuilder
from saeclamp_saes.sae import SAE, TopK
from saeclamp_saes.sites import Site
from saeclamp_saes.training.architectures import ARCHITECTURES
from saeclamp_saes.training.batchtopk_threshold import Chunks, fit_threshold
from saeclamp_saes.training.config import TrainingConfig
from saeclamp_saes.training.held_out import HeldOutMetrics, evaluate_held_out
from saeclamp_saes.training.training_sae import TrainingSAE

SaveDtype = Literal["float32", "bfloat16", "float16"]
SAVE_DTYPES: tuple[SaveDtype, ...] = get_args(SaveDtype)
CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
SAE_LENS_VERSION = "6.54.12"
"""Version of SAELens whose layout is written."""
COMPARED = 4096
"""Held-out vectors on which rounding is measured."""


@dataclass(frozen=True)
class ExportedSAE:
    """An exported SAE, with metrics of the SAE that its files are read into."""

    folder: Path
    model_name: str
    figures: HeldOutMetrics
    rounding_error: float
    """
    Change of held-out reconstructions by rounding to the stored type: root mean square distance over root mean square norm.
    0 in float32.
    """


def fold_norms(training_sae: TrainingSAE, scale: float, architecture: str) -> dict[str, Tensor]:
    """
    Return tensors by SAELens's names, for the model's own vectors, with decoder rows of norm 1.

    scale: factor of the vectors in training; activations are divided by it, like the vectors
    """
    tensors = {name: tensor.detach().clone() for name, tensor in training_sae.state_dict().items()}
    norms = tensors["W_dec"].norm(dim=1)
    norms = torch.where(norms > 0, norms, 1.0)
    tensors["W_dec"] /= norms[:, None]
    tensors["W_enc"] *= norms
    tensors["b_enc"] *= norms / scale
    tensors["threshold"] *= norms / scale
    tensors["b_dec"] /= scale
    if architecture != "jumprelu":
        del tensors["threshold"]
    return tensors


def reread(tensors: dict[str, Tensor], site: Site, architecture: str, k: int) -> SAE:
    """Make the canonical SAE of folded tensors, as the loader of the files does."""
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    draft = SAEBuilder(
        encoder=tensors["W_enc"].T.contiguous(),
        b_enc=tensors["b_enc"],
        decoder=tensors["W_dec"].clone(),
        b_dec=tensors["b_dec"],
        threshold=tensors.get("threshold"),
    )
    draft.subtract_from_input(draft.b_dec)
    return draft.finish(site, top_k=TopK(k) if architecture == "topk" else None)


def export(
    folder: Path,
    training_sae: TrainingSAE,
    config: TrainingConfig,
    *,
    scale: float,
    site: Site,
    chunks: Chunks,
    dtype: SaveDtype,
    metadata: dict[str, Any],
) -> ExportedSAE:
    """
    Round, calibrate, measure and write; in this order, so that threshold and metrics are those of the numbers in the files.

    chunks:   held-out vectors
    metadata: JSON-able, for the configuration, which is written last: a folder with one is complete
    Raises TrainingError for numbers that the type cannot hold.
    """
    how = ARCHITECTURES[config.architecture]
    exact = fold_norms(training_sae, scale, how.saved_as)
    rounded = {name: tensor.to(getattr(torch, dtype)) for name, tensor in exact.items()}
    if not all(torch.isfinite(tensor).all() for tensor in rounded.values()):
        raise TrainingError(
            f"The weights are not finite in {dtype}: training diverged, or the type is too small for them."
        )

    def ready(tensors: dict[str, Tensor]) -> SAE:
        sae = reread(tensors, site, how.saved_as, config.k)
        return fit_threshold(sae, chunks, config.k) if how.calibrated else sae

    sae = ready(rounded)
    if how.calibrated:
        rounded["threshold"] = sae.threshold.to(getattr(torch, dtype))
        sae = reread(rounded, site, how.saved_as, config.k)
    exported = ExportedSAE(
        folder=folder,
        model_name=metadata["model_name"],
        figures=evaluate_held_out(sae, chunks),
        rounding_error=0.0 if dtype == "float32" else _distance(ready(exact), sae, chunks),
    )
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS) as unfinished:
        write_safetensors({name: tensor.contiguous().cpu() for name, tensor in rounded.items()}, unfinished)
    training = {
        **metadata.get("training", {}),
        "held_out": asdict(exported.figures),
        "rounding_error": exported.rounding_error,
    }
    write_json(folder / CONFIG, _config(sae, config, site, dtype, {**metadata, "training": training}))
    return exported


def _config(sae: SAE, config: TrainingConfig, site: Site, dtype: SaveDtype, metadata: dict[str, Any]) -> dict[str, Any]:
    saved_as = ARCHITECTURES[config.architecture].saved_as
    return {
        "architecture": saved_as,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": dtype,
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        **({"k": config.k, "rescale_acts_by_decoder_norm": False} if saved_as == "topk" else {}),
        "metadata": {
            # without it SAELens takes the file for one from before version 6, and forgets all that follows
            "sae_lens_version": SAE_LENS_VERSION,
            "sae_lens_training_version": None,
            "hook_name": f"blocks.{site.layer}.hook_{site.point}",
            # the class whose hooks are called so; SAELens loads it without changing the model's weights
            "model_class_name": "HookedTransformer",
            # vectors are the model's own: nothing was folded into its weights, as TransformerLens may do
            "model_from_pretrained_kwargs": {"center_writing_weights": False},
            **metadata,
        },
    }


@torch.no_grad()
def _distance(exact: SAE, rounded: SAE, chunks: Chunks) -> float:
    x = next(chunks())[:COMPARED].to(exact.W_enc.device)
    one, other = exact.decode(exact.encode(x), x), rounded.decode(rounded.encode(x), x)
    return float((one - other).double().norm() / one.double().norm())
