"""What every family's test asserts of a checkpoint that was written to its layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.saes.loaders.layouts import Written, pickles, tokens

from saeclamp_saes.errors import CheckpointError
from saeclamp_saes.io.checkpoint import CheckpointSource
from saeclamp_saes.loaders import FORMATS, read_sae, read_source
from saeclamp_saes.options import Options
from saeclamp_saes.sae import SAE

SILENT = 1e-12
"""Activations of our fp64 equations below this are zero."""


def read(path: Path, options: str = "") -> SAE:
    """Read a checkpoint; pickles come as the converter hands them over."""
    unpickled, extras = pickles.load(path)
    return read_sae(path, Options.parse(options), unpickled=unpickled, extras=extras)


def source_of(path: Path, options: str = "") -> CheckpointSource:
    """Open a checkpoint without its numbers."""
    unpickled, extras = pickles.load(path)
    return CheckpointSource(path, Options.parse(options), shapes_only=True, unpickled=unpickled, extras=extras)


def read_without_numbers(path: Path, options: str = "") -> SAE:
    """Read a checkpoint's shapes, as `summarize` does."""
    return read_source(source_of(path, options))[1]


def recognised(path: Path, options: str = "") -> list[str]:
    """Names of the formats that take the checkpoint for theirs."""
    return [layout.name for layout in FORMATS if layout.matches(source_of(path, options))]


def refusal(path: Path, options: str = "") -> str:
    """Sentence with which a checkpoint is refused, the same with and without numbers."""
    with pytest.raises(CheckpointError) as raised:
        read(path, options)
    with pytest.raises(CheckpointError) as without_numbers:
        read_without_numbers(path, options)
    assert str(raised.value) == str(without_numbers.value)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def check(written: Written, format_name: str, options: str = "", scale: float = 1.0) -> SAE:
    """
    Assert that reading the checkpoint gives what its family's equations give, and that one format recognises it.

    scale: of the tokens
    """
    sae = read(written.path, options)
    x = tokens(sae.d_in, scale=scale)
    acts = written.encode(x)
    active = (acts.abs() > SILENT).double().mean().item()
    assert 0.05 < active < 0.95, active
    torch.testing.assert_close(sae.encode(x).double(), acts, rtol=1e-4, atol=1e-4)
    reconstructed = sae.decode(acts.float(), x.float()).double()
    torch.testing.assert_close(reconstructed, written.decode(acts, x), rtol=1e-4, atol=1e-4)
    assert recognised(written.path, options) == [format_name]
    _check_without_numbers(written.path, options, sae)
    return sae


def _check_without_numbers(path: Path, options: str, sae: SAE) -> None:
    empty = read_without_numbers(path, options)
    assert all(tensor.is_meta for tensor in (empty.W_enc, empty.W_dec, empty.b_enc, empty.b_dec, empty.threshold))
    for name in ("reads", "writes", "kind", "architecture", "input_norm", "unit", "model_name"):
        assert getattr(empty, name) == getattr(sae, name), name
    for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"):
        assert getattr(empty, name).shape == getattr(sae, name).shape, name
