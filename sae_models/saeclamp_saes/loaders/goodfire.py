"""
Goodfire: one pickle, such as `Llama-3.1-8B-Instruct-SAE-l19.pth`, without a configuration.

encoder_linear.weight (d_sae, d_in), encoder_linear.bias, decoder_linear.weight (d_in, d_sae), decoder_linear.bias. A plain
ReLU of the residual stream after the block that the name gives; nothing is subtracted or normalised.
Source: the model cards' own SparseAutoEncoder.
"""

from __future__ import annotations

from saeclamp_saes.io.checkpoint import CheckpointSource
from saeclamp_saes.loaders.linear import parse_model, parse_site, read_linear
from saeclamp_saes.sae import SAE

NAME = "goodfire"
TENSORS = ("encoder_linear.weight", "encoder_linear.bias", "decoder_linear.weight", "decoder_linear.bias")


def matches(source: CheckpointSource) -> bool:
    """Recognise the layers' names, which no other family has."""
    return source.has(*TENSORS)


def read(source: CheckpointSource) -> SAE:
    """Read the weights. Raises CheckpointError."""
    draft = read_linear(source.tensors, *TENSORS)
    name = source.weights.name
    return draft.finish(source.site(parse_site(name)), model_name=parse_model(name))
