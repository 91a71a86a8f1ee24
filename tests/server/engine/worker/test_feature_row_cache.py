"""Edits by a bank of a few rows are those by the whole SAE, whatever comes and goes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support.random_steps import stored_in_bf16

from saeclamp_saes import SAE, Site
from saeclamp_saes.clamping import EditRows, decoder_delta, read_acts
from saeclamp_saes.sae import InputNorm, TopK
from saeclamp_server.engine.worker.feature_row_cache import FeatureRowCache

CPU = torch.device("cpu")
WIDTH, NUM_FEATURES, CAPACITY = 5, 12, 3
SITE = Site("resid_post", 0)


def whole_sae(top_k: TopK | None = None) -> SAE:
    generator = torch.Generator().manual_seed(0)
    encoder, decoder = (torch.randn(NUM_FEATURES, WIDTH, generator=generator) for _ in range(2))
    return SAE(
        reads=(SITE,),
        writes=(SITE,),
        W_enc=encoder.T,
        b_enc=torch.randn(NUM_FEATURES, generator=generator),
        W_dec=decoder,
        b_dec=torch.zeros(WIDTH),
        threshold=torch.rand(NUM_FEATURES, generator=generator),
        top_k=top_k,
        input_norm=InputNorm(scale="l2"),
    )


def edited(sae: SAE, x: torch.Tensor, features: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Every token's activations of the features, and its change when they are clamped to 2."""
    token = torch.arange(len(x)).repeat_interleave(len(features))
    clamp = torch.tensor([[2.0, -1.0, -torch.inf, torch.inf]]).expand(len(token), 4)
    edits = EditRows(token, torch.from_numpy(features).repeat(len(x)), clamp)
    acts = read_acts(x, sae, edits)
    return acts.acts, decoder_delta(sae, edits, acts, len(x))[0]


@given(st.lists(st.sets(st.integers(0, NUM_FEATURES - 1), min_size=1, max_size=CAPACITY), min_size=1, max_size=12))
def test_every_request_reads_and_moves_as_the_whole_sae_does(requests: list[set[int]]) -> None:
    whole = whole_sae()
    bank = FeatureRowCache(whole, CAPACITY, CPU)
    x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(1))
    for request in requests:
        features = np.array(sorted(request), np.int64)
        rows = bank.acquire(features)
        for found, expected in zip(edited(bank.sae, x, rows), edited(whole, x, features), strict=True):
            torch.testing.assert_close(found, expected)
        bank.release(features)
    assert bank.sae.d_sae == CAPACITY
    assert bank.num_held == 0


def test_of_an_sae_that_is_kept_in_bf16_the_rows_are_bf16_too() -> None:
    stored = stored_in_bf16(whole_sae())
    bank = FeatureRowCache(stored.narrowed(), CAPACITY, CPU)
    x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(1))
    few, everything = np.array([7, 2]), np.arange(NUM_FEATURES)
    for features in (few, everything):  # the second time, the bank has grown
        rows = bank.acquire(features)
        assert (bank.sae.W_enc.dtype, bank.sae.W_dec.dtype) == (torch.bfloat16, torch.bfloat16)
        for found, expected in zip(edited(bank.sae, x, rows), edited(stored, x, features), strict=True):
            torch.testing.assert_close(found, expected)


def test_the_row_that_was_held_by_nobody_for_longest_is_given_up() -> None:
    bank = FeatureRowCache(whole_sae(), CAPACITY, CPU)
    for features in ([0, 1], [2], [0], [3]):
        bank.acquire(np.array(features))
        bank.release(np.array(features))
    assert sorted(bank.features.tolist()) == [0, 2, 3]


def test_what_is_held_stays_where_it_is_and_what_several_hold_until_the_last_goes() -> None:
    whole = whole_sae()
    bank = FeatureRowCache(whole, CAPACITY, CPU)
    x = torch.randn(2, WIDTH)
    few, everything = np.array([7, 2]), np.arange(NUM_FEATURES)
    rows = bank.acquire(few)
    assert bank.acquire(few[:1])[0] == rows[0]
    bank.release(few)
    # 7 is still held, so its row is none of those that the others get
    all_rows = bank.acquire(everything)
    assert all_rows[7] == rows[0]
    assert len(set(all_rows.tolist())) == NUM_FEATURES
    for found, expected in zip(edited(bank.sae, x, all_rows), edited(whole, x, everything), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_topk_sae_has_no_bank() -> None:
    with pytest.raises(ValueError, match="depends on all others"):
        FeatureRowCache(whole_sae(TopK(2)), CAPACITY, CPU)
