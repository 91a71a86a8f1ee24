"""Edits by a bank of a few rows are those by the whole SAE, whatever comes and goes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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
    edits = EditRows(token, torch.from_numpy(features).repeat(len(x)), clamp, torch.ones(len(token)))
    acts = read_acts(x, sae, edits)
    return acts.acts, decoder_delta(sae, edits, acts, len(x))[0]


@given(st.lists(st.sets(st.integers(0, NUM_FEATURES - 1), min_size=1, max_size=CAPACITY), min_size=1, max_size=12))
def test_every_step_reads_and_moves_as_the_whole_sae_does(steps: list[set[int]]) -> None:
    whole = whole_sae()
    bank = FeatureRowCache(whole, CAPACITY, CPU)
    x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(1))
    for step in steps:
        features = np.array(sorted(step), np.int64)
        bank.ensure_resident(features)
        for found, expected in zip(edited(bank.sae, x, bank.rows(features)), edited(whole, x, features), strict=True):
            torch.testing.assert_close(found, expected)
    assert bank.sae.d_sae == CAPACITY


def test_the_row_that_was_not_touched_for_longest_is_given_up() -> None:
    bank = FeatureRowCache(whole_sae(), CAPACITY, CPU)
    for features in ([0, 1], [2], [0], [3]):
        bank.ensure_resident(np.array(features))
    assert (bank.rows(np.arange(5)) >= 0).tolist() == [True, False, True, True, False]


def test_a_step_that_needs_more_rows_gets_them() -> None:
    whole = whole_sae()
    bank = FeatureRowCache(whole, CAPACITY, CPU)
    x = torch.randn(2, WIDTH)
    everything = np.arange(NUM_FEATURES)
    bank.ensure_resident(np.array([7]))
    bank.ensure_resident(everything)
    for found, expected in zip(edited(bank.sae, x, bank.rows(everything)), edited(whole, x, everything), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_topk_sae_has_no_bank() -> None:
    with pytest.raises(ValueError, match="depends on all others"):
        FeatureRowCache(whole_sae(TopK(2)), CAPACITY, CPU)
