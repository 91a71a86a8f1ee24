"""The check at start, on vectors that somebody else recorded."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from saeclamp_saes import SAE, Site
from saeclamp_saes.evaluation.quick_check import quick_check
from saeclamp_saes.sae import InputNorm, TopK

D = 12


def perfect() -> SAE:
    """Reconstruct anything: a feature for each direction of each axis."""
    axes = torch.cat((torch.eye(D), -torch.eye(D)))
    zeros = torch.zeros(2 * D)
    site = (Site("resid_post", 3),)
    return SAE(site, site, axes.T, zeros, axes, torch.zeros(D), zeros)


def vectors(num_tokens: int = 300) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_tokens, D, generator=generator) * torch.linspace(1, 3, D) + 1


def fit(sae: SAE, x: Tensor, target: Tensor | None = None) -> tuple[float | None, str | None]:
    position, is_special = torch.arange(len(x)), torch.zeros(len(x), dtype=torch.bool)
    result = quick_check(sae, x, x if target is None else target, position, is_special)
    return result.explained_variance, result.problem


def test_an_sae_that_reconstructs_what_is_there_fits() -> None:
    explained, problem = fit(perfect(), vectors())
    assert explained == pytest.approx(1.0)
    assert problem is None


def test_the_first_position_special_tokens_and_sinks_do_not_count() -> None:
    x = vectors()
    x[0], x[7], x[9] = 1e4, 1e4, float(5)
    is_special = torch.arange(len(x)) == 9
    result = quick_check(perfect(), x, x, torch.arange(len(x)), is_special)
    assert result.num_tokens == len(x) - 3
    assert result.l0 == pytest.approx(D, abs=0.01)


def test_a_forgotten_scale_is_found_and_named() -> None:
    sae = perfect()
    loud = replace(sae, threshold=torch.full((2 * D,), 0.05))
    explained, problem = fit(loud, vectors() * 0.01)
    assert explained is not None
    assert explained < 0.5
    assert problem is not None
    assert "input_scale" in problem


def test_a_useless_alternative_is_no_advice() -> None:
    hopeless = replace(perfect(), W_dec=-100 * perfect().W_dec)
    _, problem = fit(hopeless, vectors())
    assert problem is not None
    assert "at least 0.5 is asked for" in problem


def trained_as_topk(k: int = 16, width: int = 96, d_sae: int = 1024) -> tuple[SAE, Tensor]:
    """Vectors that are each the sum of five directions, and an SAE that has them among its k largest activations."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.nn.functional.normalize(torch.randn(d_sae, width, generator=generator), dim=1)
    chosen = torch.rand(1200, d_sae, generator=generator).topk(5, dim=1).indices
    acts = torch.zeros(1200, d_sae).scatter(1, chosen, 3 + torch.rand(chosen.shape, generator=generator))
    site, zeros = (Site("resid_post", 3),), torch.zeros(d_sae)
    sae = SAE(site, site, 0.9 * rows.T, torch.full((d_sae,), -1.0), rows, torch.zeros(width), zeros)
    return replace(sae, top_k=TopK(k), architecture="topk"), acts @ rows


def test_a_topk_sae_that_is_called_standard_is_refused() -> None:
    sae, x = trained_as_topk()
    assert fit(sae, x)[1] is None
    _, problem = fit(replace(sae, top_k=None, architecture="relu"), x)
    assert problem is not None
    assert "by 90 active features as it is read, and 0.82 by 16 as TopK with k = 16" in problem
    assert "use ?activation=topk&k=16 (or the k that its card names)" in problem


def test_more_active_features_than_numbers_show_nothing_however_much_they_explain() -> None:
    """Each feature twice, with half the weight."""
    sae = perfect()
    twice = replace(
        sae,
        W_enc=sae.W_enc.repeat(1, 2),
        b_enc=sae.b_enc.repeat(2),
        W_dec=0.5 * sae.W_dec.repeat(2, 1),
        threshold=sae.threshold.repeat(2),
    )
    explained, problem = fit(twice, vectors())
    assert explained == pytest.approx(1.0)
    assert problem is not None
    assert problem.startswith("24 features are active per token, more than the 12 numbers of a vector")


def test_what_cannot_be_measured_says_so() -> None:
    assert fit(replace(perfect(), kind="clt_layer"), vectors())[0] is None
    assert fit(perfect(), vectors(8))[1] == "only 7 ordinary tokens could be measured."


def test_a_model_whose_vectors_are_zero_is_refused_without_an_error() -> None:
    for norm in (InputNorm(), InputNorm(scale="l2"), InputNorm(center=True, scale="std", eps=1e-5)):
        _, problem = fit(replace(perfect(), input_norm=norm), torch.zeros(50, D))
        assert problem is not None
