"""
dictionary_learning: `ae.pt` and `config.json`, as in `resid_post_layer_8/trainer_0`; seven classes. Earlier steps are in
`trainer_0/checkpoints/ae_<step>.pt`. Its crosscoder fork keeps `model.safetensors`, and `dict_class` at the configuration's
top.

With nn.Linear layers: encoder.weight (d_sae, d_in), encoder.bias, decoder.weight (d_in, d_sae), and a decoder bias under a
name of the class's own. With bare matrices: W_enc (d_in, d_sae), b_enc, W_dec (d_sae, d_in), b_dec. All but AutoEncoderNew
and JumpReluAutoEncoder subtract the decoder's bias from the input. BatchTopK SAEs are used with one threshold for all
features; AutoEncoderTopK keeps each token's k largest, although it may carry a threshold too. Weights are taken as stored:
`AutoEncoder.from_pretrained` by default goes on to measure along unit rows.
A run's backup has the SAE in `ae`, and `norm_factor`: its biases and threshold are those of inputs over that factor, until
the last save multiplies them by it. The fork's BatchTopKSAE subtracts activation_mean and multiplies by
activation_global_scale, which is target_rms over the norm of activation_std; NaN means that it does not.
Source: dictionary.py, training.py, trainers/top_k.py, batch_top_k.py, matryoshka_batch_top_k.py.
"""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

import torch

from saeclamp_saes.errors import CheckpointError
from saeclamp_saes.io.checkpoint import BACKUP, TRAINER_STATE, CheckpointSource, positive_int
from saeclamp_saes.io.contents import CHECKPOINTS
from saeclamp_saes.io.tensors import PrefixedTensors, Shape, Tensors
from saeclamp_saes.loaders.builder import SAEBuilder
from saeclamp_saes.loaders.linear import matrix_shape
from saeclamp_saes.sae import SAE, TopK
from saeclamp_saes.sites import Site, from_hugging_face

NAME = "dictionary_learning"
CONFIG = "config.json"


class DictionaryConfig(NamedTuple):
    """Traits of one of the package's classes."""

    activation: str
    """relu, jumprelu, gated, topk or batchtopk"""
    b_dec: str = "b_dec"
    """Name of the decoder's bias."""
    subtracts: bool = True
    """True if that bias is subtracted from the input."""


CLASSES = {
    "AutoEncoder": DictionaryConfig("relu", b_dec="bias"),
    "AutoEncoderNew": DictionaryConfig("relu", b_dec="decoder.bias", subtracts=False),
    "GatedAutoEncoder": DictionaryConfig("gated", b_dec="decoder_bias"),
    "JumpReluAutoEncoder": DictionaryConfig("jumprelu", subtracts=False),
    "AutoEncoderTopK": DictionaryConfig("topk"),
    "BatchTopKSAE": DictionaryConfig("batchtopk"),
    "MatryoshkaBatchTopKSAE": DictionaryConfig("batchtopk"),
}

NORM_FACTOR = "norm_factor"
NORMALISATION = ("activation_mean", "activation_std", "activation_global_scale", "target_rms")
"""Buffers of the fork's BatchTopKSAE."""
FORK_EPS = 1e-8
"""Added to the scale where decoded vectors are divided by it, not where the input is multiplied by it."""

UNITS = {
    "AutoEncoder": "AutoEncoder.from_pretrained measures along decoder rows of unit length, unless it is told not to: its "
    "activations are these, times the length of the feature's row",
    "GatedAutoEncoder": "the crosscoder fork's code gives these times the length of the feature's decoder row",
    "JumpReluAutoEncoder": "the crosscoder fork's code gives these times the length of the feature's decoder row",
}
"""Notes on classes for which some code gives activations in other units than the stored ones."""

TELLING = {
    "gate_bias": "GatedAutoEncoder",
    "group_sizes": "MatryoshkaBatchTopKSAE",
    "bias": "AutoEncoder",
    "decoder.bias": "AutoEncoderNew",
}
"""Tensors that only one class has."""


def matches(source: CheckpointSource) -> bool:
    """Recognise its trainer's configuration, or without one, tensors that only its classes have."""
    names = _tensors(source).shapes
    if "dict_class" in _trainer(source):
        return "encoder.weight" in names or "W_enc" in names
    if {"encoder.weight", "decoder.weight"} <= names.keys():
        return any(name in names for name in ("bias", "gate_bias", "b_dec"))
    return {"W_enc", "W_dec", "group_sizes"} <= names.keys()


def read(source: CheckpointSource) -> SAE:
    """Read the weights and fold what is constant. Raises CheckpointError."""
    tensors, trainer = _tensors(source), _trainer(source)
    name = trainer.get("dict_class") or _class_of(source, tensors)
    if not isinstance(name, str) or name not in CLASSES:
        raise CheckpointError(f"{source.path}: dict_class {name!r} is not supported; supported: {', '.join(CLASSES)}.")
    kind = CLASSES[name]
    draft = _draft(source, tensors, kind)
    factor = _norm_factor(source)
    top_k, architecture = None, kind.activation
    if architecture in ("topk", "batchtopk"):
        top_k = _top_k_or_threshold(source, tensors, kind, draft, factor)
        architecture = "topk" if top_k else "jumprelu"
    elif draft.threshold is not None:
        draft.threshold = draft.threshold * factor
    # before b_dec is subtracted from the input, because a backup's b_dec is too small by the factor too
    draft.b_enc, draft.b_dec = draft.b_enc * factor, draft.b_dec * factor
    if kind.subtracts:
        draft.subtract_from_input(draft.b_dec)
    # the checkpoint's code normalises first, so it is folded last
    _fold_normalisation(tensors, draft)
    source.unit_note = UNITS.get(name)
    buffer = (source.config(CONFIG) or {}).get("buffer")
    source.context_size = buffer.get("ctx_len") if isinstance(buffer, dict) else None
    return draft.finish(
        source.site(_site(source, trainer)),
        architecture=architecture,
        top_k=top_k,
        model_name=trainer.get("lm_name"),
    )


def _tensors(source: CheckpointSource) -> Tensors:
    prefix = f"{BACKUP}."
    is_backup = any(name.startswith(prefix) for name in source.tensors.shapes)
    return PrefixedTensors(source.tensors, prefix) if is_backup else source.tensors


def _trainer(source: CheckpointSource) -> dict[str, Any]:
    config, kept = source.config(CONFIG) or {}, source.extra("config")
    trainer = config.get("trainer") or (config if "dict_class" in config else kept)
    return trainer if isinstance(trainer, dict) else {}


def _norm_factor(source: CheckpointSource) -> float:
    """Return the factor that a backup's biases are multiplied by; 1 for an SAE that was saved for use."""
    if source.extra(BACKUP) is None:
        return 1.0
    known = (*TRAINER_STATE, BACKUP, NORM_FACTOR)
    if unknown := [name for name in source.tensors.shapes if name.partition(".")[0] not in known]:
        raise CheckpointError(f"{source.path} has {', '.join(unknown[:4])}, whose meaning is not known.")
    stored = NORM_FACTOR in source.tensors
    factor = source.tensors.scalar(NORM_FACTOR) if stored else source.extra(NORM_FACTOR)
    if factor is None:
        scale = source.options.number("input_scale")
        if scale is None:
            raise CheckpointError(
                f"{source.path} is the backup of a run, and does not say what its inputs were divided by (norm_factor): "
                "give ?input_scale=1 if by nothing, else one over that."
            )
        return 1.0 / scale
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < math.inf:
        raise CheckpointError(f"{source.path}: norm_factor must be a positive number, not {factor!r}.")
    return float(factor)


def _fold_normalisation(tensors: Tensors, draft: SAEBuilder) -> None:
    mean, std, scale, _ = NORMALISATION
    if mean not in tensors or tensors.is_nan(mean) or tensors.is_nan(std):
        return
    factor, shift = tensors.scalar(scale), tensors.tensor(mean, tuple(draft.b_dec.shape)).double()
    draft.scale_sides(factor, factor + FORK_EPS)
    draft.subtract_from_input(shift)
    draft.b_dec = draft.b_dec + shift


def _class_of(source: CheckpointSource, tensors: Tensors) -> str:
    """Find the class of a file whose configuration is missing. Raises CheckpointError."""
    for tensor, name in TELLING.items():
        if tensor in tensors:
            return name
    if len(tensors.shapes.get("threshold", ())) == 1:
        return "JumpReluAutoEncoder"
    activation = source.options.text("activation", "jumprelu", "topk")
    if activation is None:
        raise CheckpointError(
            f"{source.path} has no {CONFIG} that says how it is used (dict_class): add it, or ?activation=topk "
            "(AutoEncoderTopK), or ?activation=jumprelu (BatchTopKSAE, with its threshold)."
        )
    return "AutoEncoderTopK" if activation == "topk" else "BatchTopKSAE"


def _draft(source: CheckpointSource, tensors: Tensors, kind: DictionaryConfig) -> SAEBuilder:
    linear = "encoder.weight" in tensors
    encoder, decoder = ("encoder.weight", "decoder.weight") if linear else ("W_enc", "W_dec")
    stored = matrix_shape(tensors, encoder)
    d_sae, d_in = stored if linear else stored[::-1]
    b_enc = "mag_bias" if kind.activation == "gated" else "encoder.bias" if linear else "b_enc"
    required: dict[str, Shape] = {encoder: stored, decoder: stored[::-1], b_enc: (d_sae,), kind.b_dec: (d_in,)}
    optional: dict[str, Shape] = {}
    if kind.activation == "gated":
        required |= {"gate_bias": (d_sae,), "r_mag": (d_sae,)}
    if kind.activation == "jumprelu":
        required["threshold"] = (d_sae,)
    if kind.activation in ("topk", "batchtopk"):
        optional = {name: tensors.shapes.get(name, ()) for name in ("k", "threshold", "group_sizes")}
        if NORMALISATION[0] in tensors:
            required |= dict(zip(NORMALISATION, ((d_in,), (d_in,), (), ()), strict=True))
    tensors.expect(required, optional)
    read, read_turned = (tensors.tensor, tensors.transposed) if linear else (tensors.transposed, tensors.tensor)
    draft = SAEBuilder(
        encoder=read(encoder, stored),
        b_enc=tensors.tensor(b_enc, (d_sae,)),
        decoder=read_turned(decoder, stored[::-1]),
        b_dec=tensors.tensor(kind.b_dec, (d_in,)),
        threshold=tensors.tensor("threshold", (d_sae,)) if kind.activation == "jumprelu" else None,
    )
    if kind.activation == "gated":
        gate, r_mag = tensors.tensor("gate_bias", (d_sae,)), tensors.tensor("r_mag", (d_sae,))
        draft.gate(source.path, b_gate=gate, b_mag=draft.b_enc, r_mag=r_mag)
    return draft


def _top_k_or_threshold(
    source: CheckpointSource, tensors: Tensors, kind: DictionaryConfig, draft: SAEBuilder, factor: float
) -> TopK | None:
    """
    Return the TopK, or set the builder's threshold and return None.

    factor: multiplies a stored threshold
    """
    usual = "topk" if kind.activation == "topk" else "jumprelu"
    activation = source.options.text("activation", "jumprelu", "topk") or usual
    if activation == "topk":
        if usual != "topk":
            source.approximation = "each token's k largest in place of BatchTopK's threshold"
        return TopK(_k(source, tensors))
    stored = tensors.scalar("threshold") if "threshold" in tensors else -1.0  # -1 until training sets it
    threshold = stored * factor if stored >= 0 else source.options.number("threshold")
    if threshold is None:
        untrue = "" if usual == "topk" else ", which is not how it was trained"
        raise CheckpointError(
            f"{source.path}: its threshold was never calibrated; add ?threshold=VALUE, or ?activation=topk to keep each "
            f"token's k largest{untrue}."
        )
    if usual == "topk":
        source.approximation = f"threshold {threshold:g} in place of TopK"
    draft.threshold = torch.full_like(draft.b_enc, threshold)
    return None


def _k(source: CheckpointSource, tensors: Tensors) -> int:
    if "k" in tensors:
        return int(tensors.scalar("k"))
    trainer = _trainer(source)
    if "k" in trainer:
        return positive_int(trainer, "k", source.folder / CONFIG)
    k = source.options.integer("k")
    if not k:
        raise CheckpointError(f"{source.path} does not say how many activations it keeps: add ?k=64 (or the like).")
    return k


def _site(source: CheckpointSource, trainer: dict[str, Any]) -> Site | None:
    buffer = (source.config(CONFIG) or {}).get("buffer")
    side = buffer.get("io", "out") if isinstance(buffer, dict) else "out"
    if side == "in_and_out":
        raise CheckpointError(f"{source.path} was trained from a module's input to its output, which is not supported.")
    module = trainer.get("submodule_name")
    layer = trainer.get("layer")
    if side != "out":
        return None
    if isinstance(module, str):
        return _named_stream(module) or from_hugging_face(module)
    if isinstance(layer, int):
        return Site("resid_post", layer)  # all published SAEs whose module is not named are of the stream
    trainer_folder = source.weights.absolute().parent
    trainer_folder = trainer_folder.parent if trainer_folder.name == CHECKPOINTS else trainer_folder
    return _named_stream(trainer_folder.parent.name)


def _named_stream(name: str) -> Site | None:
    match = re.fullmatch(r"resid_post_layer_?(\d{1,4})", name)
    return Site("resid_post", int(match[1])) if match else None
