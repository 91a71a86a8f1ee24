"""An SAE of bf16 numbers is the same with its matrices in bf16, and takes no memory for copies of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.support.checkpoints import make_sae
from tests.support.largest_tensor import LargestTensor
from tests.support.random_steps import stored_in_bf16
from tests.support.tiny_saes import ARCHITECTURES, D_IN, D_SAE, NUM_TOKENS

from saeclamp_saes import SAE, narrow_rows, read_sae
from saeclamp_saes.clamping import EditRows, UniqueFeatures, decoder_delta, read_acts

FEW_ROWS = 7
"""Rows that are widened at once in these tests; the last run is shorter."""


@pytest.fixture(params=ARCHITECTURES)
def stored(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SAE:
    """Make an SAE of each architecture, in fp32, whose matrices have bf16 numbers."""
    monkeypatch.setattr(narrow_rows, "WIDENED_BYTES", FEW_ROWS * 4 * D_IN)
    folder = make_sae(tmp_path / "sae", layer=0, d_in=D_IN, d_sae=D_SAE, **ARCHITECTURES[request.param])
    return stored_in_bf16(read_sae(folder))


def test_a_matrix_of_bf16_numbers_is_kept_in_bf16(stored: SAE) -> None:
    narrow = stored.narrowed()
    assert (narrow.W_enc.dtype, narrow.W_dec.dtype) == (torch.bfloat16, torch.bfloat16)
    assert narrow.rows().encoder.is_contiguous(), "a feature's row lies in one piece"
    for name, tensor in narrow.tensors().items():
        assert torch.equal(tensor.float(), stored.tensors()[name]), name
    assert narrow.dtype is torch.float32


@pytest.mark.parametrize("name", ["W_enc", "W_dec"])
@pytest.mark.parametrize("number", [1 + 2**-8, 3.4e38, float("nan")])
def test_one_number_that_bf16_does_not_have_leaves_the_sae_as_it_is(tmp_path: Path, name: str, number: float) -> None:
    sae = read_sae(make_sae(tmp_path / "sae", layer=0, d_in=D_IN, d_sae=D_SAE, dtype=torch.bfloat16))
    sae.tensors()[name][-1, -1] = number
    assert sae.narrowed() is sae


def test_activations_and_reconstructions_are_those_of_the_sae_in_fp32(stored: SAE) -> None:
    x = torch.randn(2, NUM_TOKENS, D_IN, generator=torch.Generator().manual_seed(0))
    acts = stored.encode(x)
    assert (acts != 0).any()
    torch.testing.assert_close(stored.narrowed().encode(x), acts)
    torch.testing.assert_close(stored.narrowed().decode(acts, x), stored.decode(acts, x))


@pytest.mark.parametrize("has_distinct", [False, True])
def test_edits_are_those_of_the_sae_in_fp32(stored: SAE, has_distinct: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(NUM_TOKENS, D_IN, generator=generator)
    token, feature = torch.arange(NUM_TOKENS).repeat_interleave(20), torch.randint(D_SAE, (20 * NUM_TOKENS,))
    edits = EditRows(token, feature, torch.tensor([[2.0, -1.0, -torch.inf, torch.inf]]).expand(len(token), 4))
    if has_distinct:
        edits = edits._replace(distinct=UniqueFeatures(*torch.unique(feature, return_inverse=True)))
    narrow = stored.narrowed()
    acts, expected = read_acts(x, narrow, edits), read_acts(x, stored, edits)
    torch.testing.assert_close(acts, expected)
    torch.testing.assert_close(
        decoder_delta(narrow, edits, expected, NUM_TOKENS), decoder_delta(stored, edits, expected, NUM_TOKENS)
    )


def test_no_copy_of_a_whole_matrix_is_made_in_fp32(stored: SAE) -> None:
    x = torch.randn(1, D_IN)
    with LargestTensor() as largest:
        narrow = stored.narrowed()
    assert largest.num_bytes == 2 * D_IN * D_SAE, "the result itself"
    with LargestTensor() as largest:
        narrow.decode(narrow.encode(x), x)
    # FEW_ROWS of the matrices, or the activations of all features
    assert largest.num_bytes <= max(4 * FEW_ROWS * D_IN, 8 * D_SAE)
