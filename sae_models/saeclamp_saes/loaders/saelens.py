"""
SAELens: `cfg.json` and `sae_weights.safetensors` (version 6, and version 5's flat keys).

W_enc (d_in, d_sae), W_dec (d_sae, d_out), b_enc, b_dec; `threshold` (or `log_threshold`) for JumpReLU, which BatchTopK and
Matryoshka SAEs are saved as too; `b_gate`, `b_mag`, `r_mag` in place of b_enc for gated SAEs; `W_skip` (d_out, d_in) for
skip transcoders. The encoder normalises its input, then subtracts b_dec unless `apply_b_dec_to_input` is false; a transcoder
never subtracts it. Version 5's `scaling_factor` multiplies the activations in decode only; version 6 cannot load one.
Source: saes/*.py, training/sae_trainer.py and loading/pretrained_sae_loaders.py of sae-lens 6.54.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from saeclamp_saes.errors import CheckpointError
from saeclamp_saes.io.checkpoint import CheckpointSource, positive_int
from saeclamp_saes.io.contents import WHITENING
from saeclamp_saes.io.tensors import Shape
from saeclamp_saes.loaders.builder import SAEBuilder
from saeclamp_saes.loaders.transformer_lens import is_centered
from saeclamp_saes.sae import SAE, InputNorm, Kind, TopK
from saeclamp_saes.sites import Site, from_hugging_face, from_transformer_lens

NAME = "saelens"
CONFIG = "cfg.json"

KINDS: dict[str, tuple[Kind, str]] = {
    "standard": ("sae", "relu"),
    "jumprelu": ("sae", "jumprelu"),
    "gated": ("sae", "gated"),
    "topk": ("sae", "topk"),
    "abstopk": ("sae", "abstopk"),
    "transcoder": ("transcoder", "relu"),
    "jumprelu_transcoder": ("transcoder", "jumprelu"),
    "skip_transcoder": ("skip_transcoder", "relu"),
    "jumprelu_skip_transcoder": ("skip_transcoder", "jumprelu"),
}
"""`architecture` -> kind and activation. Missing: temporal (needs the whole sequence), matching_pursuit (iterates)."""

TRAINED = ("batchtopk", "matryoshka_batchtopk")
"""Architectures of training; for use they are saved as JumpReLU."""

INPUT_NORMS = {
    "none": InputNorm(),
    "layer_norm": InputNorm(center=True, scale="std", eps=1e-5),
    "constant_norm_rescale": InputNorm(scale="l2"),
}
FOLDED = "expected_average_only_in"
WHITENED = "covariance_whitening"
SCALER = "activation_scaler.json"


def matches(source: CheckpointSource) -> bool:
    """Recognise W_enc and W_dec beside a `cfg.json` that gives d_sae."""
    cfg = source.config(CONFIG)
    return (
        cfg is not None and source.weights.suffix == ".safetensors" and "d_sae" in cfg and source.has("W_enc", "W_dec")
    )


def read(source: CheckpointSource) -> SAE:
    """Read the weights and fold what is constant. Raises CheckpointError."""
    cfg, path = source.config(CONFIG) or {}, source.folder
    kind, activation = _architecture(cfg, path)
    d_in, d_sae = positive_int(cfg, "d_in", path), positive_int(cfg, "d_sae", path)
    d_out = positive_int(cfg, "d_out", path) if kind != "sae" and "d_out" in cfg else d_in
    _check_tensors(source, kind, activation, d_in, d_sae, d_out)
    reads, writes = _sites(source, cfg, kind)
    source.context_size = _metadata(cfg).get("context_size")
    draft = _draft(source, activation, d_in, d_sae, d_out)
    if kind == "sae" and cfg.get("apply_b_dec_to_input", True):
        draft.subtract_from_input(draft.b_dec)
    if activation in ("topk", "abstopk") and cfg.get("rescale_acts_by_decoder_norm"):
        draft.scale_activations(draft.decoder_norms())
    norm = _input_norm(source, cfg, draft)
    if kind != "sae" and (not norm.is_identity or cfg.get("normalize_activations") == WHITENED):
        raise CheckpointError(
            f"{path}: a transcoder that normalises each token's input ({cfg['normalize_activations']}) is not supported."
        )
    if is_centered(source, reads, _metadata(cfg).get("model_name"), stated=_centering(cfg)):
        norm = norm._replace(center=True)
        if kind != "sae":  # what it writes is another vector, without the input's mean
            norm = InputNorm()
            draft.encoder.sub_(draft.encoder.mean(dim=1, keepdim=True))
    _check_k(source, cfg, activation)
    return draft.finish(
        reads,
        writes,
        kind=kind,
        architecture=activation,
        top_k=_top_k(cfg, activation, path),
        input_norm=norm,
        W_skip=source.tensors.transposed("W_skip", (d_out, d_in)) if kind == "skip_transcoder" else None,
        model_name=_metadata(cfg).get("model_name"),
    )


def _metadata(cfg: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata, which version 6 nests and version 5 kept flat."""
    nested = cfg.get("metadata")
    return nested if isinstance(nested, dict) else cfg


def _architecture(cfg: dict[str, Any], path: Path) -> tuple[Kind, str]:
    architecture = cfg.get("architecture", "standard")
    # version 5 called every ungated SAE standard and named the activation beside it; the default was relu
    activation = cfg.get("activation_fn_str", cfg.get("activation_fn", "relu"))
    if architecture == "standard" and activation != "relu":
        architecture = activation
    elif activation not in ("relu", None, architecture):
        raise CheckpointError(
            f"{path}: architecture {architecture!r} with the activation function {activation!r} is not supported; "
            "supported: relu."
        )
    if architecture in TRAINED:
        raise CheckpointError(
            f"{path} is the state of a training run ({architecture}), which SAELens itself cannot load to use: save the SAE "
            "with save_inference_model, which makes it a JumpReLU."
        )
    if not isinstance(architecture, str) or architecture not in KINDS:
        raise CheckpointError(f"{path}: architecture {architecture!r} is not supported; supported: {', '.join(KINDS)}.")
    if cfg.get("reshape_activations", "none") not in ("none", "hook_z", None):
        raise CheckpointError(f"{path}: reshape_activations {cfg['reshape_activations']!r} is not supported.")
    head = _metadata(cfg).get("hook_head_index", _metadata(cfg).get("hook_point_head_index"))
    if head is not None:
        raise CheckpointError(f"{path} reads the single attention head {head}, which is not supported.")
    return KINDS[architecture]


def _check_k(source: CheckpointSource, cfg: dict[str, Any], activation: str) -> None:
    """Raise CheckpointError for a ReLU whose configuration gives a k, unless the user says which of the two is meant."""
    kwargs = cfg.get("activation_fn_kwargs")
    k = cfg.get("k") or (kwargs.get("k") if isinstance(kwargs, dict) else None)
    if activation != "relu" or not k or source.options.values.get("activation") == "topk":
        return
    if source.options.text("activation", "relu", "topk") is None:
        raise CheckpointError(
            f"{source.folder}: the configuration says {cfg.get('architecture', 'standard')!r}, and gives k = {k}, as of a "
            f"TopK: add ?activation=topk&k={k} or ?activation=relu."
        )


def _check_tensors(source: CheckpointSource, kind: Kind, activation: str, d_in: int, d_sae: int, d_out: int) -> None:
    required: dict[str, Shape] = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), "b_dec": (d_out,)}
    for name in ("b_gate", "b_mag", "r_mag") if activation == "gated" else ("b_enc",):
        required[name] = (d_sae,)
    if activation == "jumprelu":
        required["log_threshold" if "log_threshold" in source.tensors else "threshold"] = (d_sae,)
    if kind == "skip_transcoder":
        required["W_skip"] = (d_out, d_in)
    source.tensors.expect(required, {"scaling_factor": (d_sae,)})


def _draft(source: CheckpointSource, activation: str, d_in: int, d_sae: int, d_out: int) -> SAEBuilder:
    tensors = source.tensors

    def vector(name: str) -> Tensor:
        return tensors.tensor(name, (d_sae,))

    encoder = tensors.transposed("W_enc", (d_in, d_sae))
    decoder = tensors.tensor("W_dec", (d_sae, d_out))
    if "scaling_factor" in tensors:
        decoder.mul_(vector("scaling_factor")[:, None])
    b_enc = vector("b_mag" if activation == "gated" else "b_enc")
    draft = SAEBuilder(encoder, b_enc, decoder, tensors.tensor("b_dec", (d_out,)))
    if activation == "gated":
        draft.gate(source.path, b_gate=vector("b_gate"), b_mag=b_enc, r_mag=vector("r_mag"))
    elif "log_threshold" in tensors:
        draft.threshold = vector("log_threshold").double().exp()
    elif activation == "jumprelu":
        draft.threshold = vector("threshold").double()
    return draft


def _input_norm(source: CheckpointSource, cfg: dict[str, Any], draft: SAEBuilder) -> InputNorm:
    """Fold a constant factor; return the normalisation that depends on the token."""
    # mistral-7b-res-wg's files are silent about theirs, which sae-lens's registry adds
    chosen = source.options.text("normalize", *INPUT_NORMS)
    kind = chosen or cfg.get("normalize_activations")
    if kind is True or kind == FOLDED:
        draft.scale_input(_input_scale(source))
        return InputNorm()
    if kind == WHITENED:
        _fold_whitening(source, draft)
        return InputNorm()
    if chosen is None:
        _check_beside(source, kind)
    name = "none" if kind in (None, False) else kind
    if not isinstance(name, str) or name not in INPUT_NORMS:
        raise CheckpointError(
            f"{source.folder}: normalize_activations {kind!r} is not supported; "
            f"supported: {', '.join(INPUT_NORMS)}, {FOLDED}, {WHITENED}."
        )
    return INPUT_NORMS[name]


def _check_beside(source: CheckpointSource, kind: object) -> None:
    """Refuse a scaler or whitening file, which training leaves, beside an SAE that claims to have no normalisation."""
    held = "a factor" if (source.config(SCALER) or {}).get("scaling_factor") is not None else ""
    file = SCALER if held else WHITENING if (source.weights.parent / WHITENING).is_file() else ""
    if file:
        raise CheckpointError(
            f"{source.folder}: {file} holds {held or 'a whitening'}, and normalize_activations is {kind!r}: add "
            "?normalize=none if it is in the weights already, else correct the configuration."
        )


def _fold_whitening(source: CheckpointSource, draft: SAEBuilder) -> None:
    """Fold `(x - mean) @ matrix` before, and `@ inverse_matrix + mean` after, which are as constant as a factor."""
    path, d_in = source.weights.parent / WHITENING, draft.encoder.shape[1]
    if not path.is_file() or draft.decoder.shape[1] != d_in:
        raise CheckpointError(
            f"{source.folder}: normalize_activations is {WHITENED}, and the matrices are not in the files: put "
            f"{WHITENING}, which training writes, beside the weights."
        )
    tensors = source.open(path)
    square = (d_in, d_in)
    tensors.expect({"mean": (d_in,), "matrix": square, "inverse_matrix": square})
    matrix, inverse = tensors.tensor("matrix", square), tensors.tensor("inverse_matrix", square)
    draft.whiten(tensors.tensor("mean", (d_in,)), matrix, inverse)


def _input_scale(source: CheckpointSource) -> float:
    """Return the factor that every input is multiplied by: from the user, else from the file that training leaves."""
    scaler = source.config(SCALER) or {}
    factor = source.options.number("input_scale") or scaler.get("scaling_factor")
    if not isinstance(factor, int | float) or not factor > 0:
        raise CheckpointError(
            f"{source.folder}: normalize_activations is {FOLDED}, and the factor is not in the files: "
            "give ?input_scale=FACTOR (sqrt(d_in) over the mean norm of the training activations)."
        )
    return float(factor)


def _centering(cfg: dict[str, Any]) -> bool | None:
    """Tell whether training centred what blocks write; None where the files are silent, as before version 4."""
    kwargs = _metadata(cfg).get("model_from_pretrained_kwargs")
    return bool(kwargs.get("center_writing_weights", False)) if isinstance(kwargs, dict) else None


def _top_k(cfg: dict[str, Any], activation: str, path: Path) -> TopK | None:
    if activation not in ("topk", "abstopk"):
        return None
    kwargs = cfg.get("activation_fn_kwargs")
    where = kwargs if isinstance(kwargs, dict) and "k" in kwargs else cfg
    return TopK(positive_int(where, "k", path), signed=activation == "abstopk")


def _sites(source: CheckpointSource, cfg: dict[str, Any], kind: Kind) -> tuple[Site, Site]:
    metadata = _metadata(cfg)
    hook_in = metadata.get("hook_name", metadata.get("hook_point"))
    reads = source.site(_site(hook_in), hook_in)
    if kind == "sae":
        return reads, reads
    hook_out = metadata.get("hook_name_out", metadata.get("hook_point_out"))
    return reads, source.site_out(_site(hook_out), hook_out)


def _site(hook: object) -> Site | None:
    """Translate a hook of TransformerLens, or of a model of transformers, where SAELens names modules."""
    return (from_transformer_lens(hook) or from_hugging_face(hook)) if isinstance(hook, str) else None
