"""Helpers for families with two `nn.Linear` layers: a weight is (out, in), so the decoder's features are its columns."""

from __future__ import annotations

import re

from saeclamp_saes.errors import CheckpointError
from saeclamp_saes.io.tensors import Shape, Tensors
from saeclamp_saes.loaders.builder import SAEBuilder
from saeclamp_saes.sites import Site

PUBLISHED = re.compile(r"(.+)-SAE-l(\d{1,4})\.\w+")
"""File names of Goodfire and qresearch: `<model>-SAE-l19.pt`."""


def matrix_shape(tensors: Tensors, name: str) -> Shape:
    """Return the shape of a stored matrix, (rows, columns). Raises CheckpointError if it is no matrix."""
    shape = tensors.shapes.get(name, ())
    if len(shape) != 2:
        raise CheckpointError(f"{tensors.path} lacks the matrix {name}.")
    return shape


def read_linear(tensors: Tensors, encoder: str, b_enc: str, decoder: str, b_dec: str) -> SAEBuilder:
    """Read an encoder stored as (d_sae, d_in) and a decoder stored as (d_in, d_sae), and no other tensor."""
    d_sae, d_in = matrix_shape(tensors, encoder)
    tensors.expect({encoder: (d_sae, d_in), b_enc: (d_sae,), decoder: (d_in, d_sae), b_dec: (d_in,)})
    return SAEBuilder(
        encoder=tensors.tensor(encoder, (d_sae, d_in)),
        b_enc=tensors.tensor(b_enc, (d_sae,)),
        decoder=tensors.transposed(decoder, (d_in, d_sae)),
        b_dec=tensors.tensor(b_dec, (d_in,)),
    )


def parse_site(file_name: str) -> Site | None:
    """Translate `<model>-SAE-l19.pt` into the residual stream after block 19; None for another name."""
    match = PUBLISHED.fullmatch(file_name)
    return Site("resid_post", int(match[2])) if match else None


def parse_model(file_name: str) -> str | None:
    """Find the model in `<model>-SAE-l19.pt`; None for another name."""
    match = PUBLISHED.fullmatch(file_name)
    return match[1] if match else None
