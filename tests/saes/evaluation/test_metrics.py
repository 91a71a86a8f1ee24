"""The figures, on tensors whose answers a reader can work out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from saeclamp_saes.evaluation import metrics
from saeclamp_saes.lm import token_mask


def rows(*lengths: float) -> Tensor:
    return torch.tensor([[length, 0.0] for length in lengths])


def test_the_first_position_special_tokens_and_sinks_are_left_out() -> None:
    x = rows(1, 2, 3, 2, 21, 2)
    position = torch.tensor([0, 1, 2, 3, 4, 5])
    is_special = torch.tensor([False, False, True, False, False, False])
    assert token_mask.scored_token_mask(x, position, is_special).tolist() == [False, True, False, True, False, True]


def test_a_first_position_as_long_as_a_sink_does_not_move_the_median() -> None:
    x = rows(9000, 1, 9000, 1, 10, 11)
    position = torch.tensor([0, 1, 0, 1, 2, 3])
    kept = token_mask.scored_token_mask(x, position, torch.zeros(6, dtype=torch.bool))
    assert kept.tolist() == [False, True, False, True, True, False]


def test_no_token_is_ordinary_where_all_are_first() -> None:
    kept = token_mask.scored_token_mask(rows(1, 2), torch.tensor([0, 0]), torch.tensor([False, False]))
    assert kept.tolist() == [False, False]


@pytest.mark.parametrize(
    ("reconstruction", "expected"),
    [
        pytest.param([[0.0], [2.0], [4.0]], 1.0, id="perfect"),
        pytest.param([[2.0], [2.0], [2.0]], 0.0, id="the-mean"),
        pytest.param([[1.0], [2.0], [3.0]], 0.75, id="half-the-way-from-the-mean"),
        pytest.param([[4.0], [2.0], [0.0]], -3.0, id="mirrored"),
        pytest.param([[0.0], [2.0], [float("inf")]], float("-inf"), id="not-finite"),
        pytest.param([[0.0], [2.0], [float("nan")]], float("-inf"), id="not-a-number"),
    ],
)
def test_explained_variance_is_around_the_mean(reconstruction: list[list[float]], expected: float) -> None:
    target = torch.tensor([[0.0], [2.0], [4.0]])
    assert metrics.explained_variance(target, torch.tensor(reconstruction)) == expected


def test_a_target_that_does_not_vary_cannot_be_explained() -> None:
    assert metrics.explained_variance(torch.ones(3, 2), torch.ones(3, 2)) == float("-inf")


def test_a_large_mean_costs_no_precision() -> None:
    target = torch.tensor([[4096.0], [4097.0], [4098.0]]).repeat(1000, 1)
    assert metrics.explained_variance(target, target + 0.5) == pytest.approx(1 - 0.25 / (2 / 3))


@pytest.mark.parametrize(("k", "expected"), [(0, 0.0), (1, 9 / 14), (2, 13 / 14), (3, 1.0), (8, 1.0)])
def test_pca_explains_the_share_of_its_largest_directions(k: int, expected: float) -> None:
    spread = torch.diag(torch.tensor([1.0, 3.0, 2.0]))
    x = torch.cat([spread, -spread]) + 7.0
    assert metrics.pca_explained_variance(x, k) == pytest.approx(expected)


def test_pca_of_fewer_tokens_than_dimensions_is_the_same_thing() -> None:
    x = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    centered = (x - x.mean(dim=0)).double()
    squares = torch.linalg.svdvals(centered).square()
    assert metrics.pca_explained_variance(x, 2) == pytest.approx(float(squares[:2].sum() / squares.sum()))


def test_l0_counts_negative_activations_too() -> None:
    assert metrics.l0(torch.tensor([[0.0, -1.0, 2.0], [0.0, 0.0, 0.0]])).tolist() == [2, 0]


def test_dead_features_are_never_active_and_dense_ones_on_more_than_a_tenth() -> None:
    num_active = torch.tensor([0, 10, 11, 100])
    assert metrics.dead_share(num_active) == 0.25
    assert metrics.dense_share(num_active, num_tokens=100) == 0.5


@pytest.mark.parametrize(
    ("spliced", "expected"), [(2.0, 1.0), (4.0, 0.5), (6.0, 0.0), (8.0, -0.5)], ids=["all", "half", "none", "worse"]
)
def test_recovered_is_the_share_of_the_loss_from_ablation_won_back(spliced: float, expected: float) -> None:
    assert metrics.loss_recovered(clean=2.0, spliced=spliced, ablated=6.0) == expected


def test_nothing_is_recovered_where_ablation_costs_nothing() -> None:
    assert metrics.loss_recovered(clean=2.0, spliced=3.0, ablated=2.0) is None
