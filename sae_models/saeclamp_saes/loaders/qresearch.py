"""
Qresearch's SAE of a DeepSeek-R1 distillate: one pickle, `DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt`, without a configuration.

encoder.weight (d_sae, d_in), encoder.bias, decoder.weight (d_in, d_sae), decoder.bias. A plain ReLU of the residual stream
after the block that the name gives; nothing is subtracted or normalised.
Source: loading/pretrained_sae_loaders.py of sae-lens 6.54.

Other families use the same tensors' names with further steps, which only their configuration says (Llama Scope's
`checkpoints/final.safetensors`, e2e_sae's `<name>.pt`). So a file is of this family if it is named as it was published and
has no configuration beside it, or if the user says so.
"""

from __future__ import annotations

from saeclamp_saes.io.checkpoint import CheckpointSource
from saeclamp_saes.loaders.linear import parse_model, parse_site, read_linear
from saeclamp_saes.sae import SAE

NAME = "qresearch"
TENSORS = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
OTHERS_CONFIGS = ("hyperparams.json", "../hyperparams.json", "config.json", "cfg.json", "final_config.yaml")
"""Configurations of Llama Scope (a folder above its weights), dictionary_learning and OpenMOSS, SAELens, e2e_sae."""


def matches(source: CheckpointSource) -> bool:
    """Recognise the four tensors under the published name, beside no configuration (e2e_sae's is named like the weights)."""
    weights = source.weights
    foreign = [weights.with_suffix(".yaml"), *(weights.parent / name for name in OTHERS_CONFIGS)]
    alone = parse_site(weights.name) is not None and not any(path.is_file() for path in foreign)
    return alone and source.tensors.shapes.keys() == set(TENSORS)


def read(source: CheckpointSource) -> SAE:
    """Read the weights. Raises CheckpointError."""
    draft = read_linear(source.tensors, *TENSORS)
    name = source.weights.name
    return draft.finish(source.site(parse_site(name)), model_name=parse_model(name))
