"""Bins hold what numpy puts into them, and quantiles lie where they belong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saeclamp_saes.evaluation.histograms import Histogram, count_by_bin, quantile_of_counts


def test_histograms_count_as_numpy_does() -> None:
    values = torch.cat([torch.logspace(-3, 3, 997), torch.tensor([1.0, 10.0, 100.0])]).double()
    edges = torch.tensor([0.01, 0.1, 1.0, 10.0, 100.0], dtype=torch.float64)
    inside = values[(values >= 0.01) & (values <= 100)]
    expected = np.histogram(inside.numpy(), edges.numpy())[0]
    below, above = int((values < 0.01).sum()), int((values > 100).sum())
    expected[0] += below
    expected[-1] += above
    assert count_by_bin(values, edges).tolist() == expected.tolist()


@pytest.mark.parametrize("q", [0.0, 0.05, 0.31, 0.5, 0.95, 1.0])
def test_quantiles_of_counts_are_those_of_the_numbers(q: float) -> None:
    numbers = [0, 0, 1, 3, 3, 3, 4, 9, 9, 12]
    counts = torch.bincount(torch.tensor(numbers), minlength=20)
    assert quantile_of_counts(counts, q) == pytest.approx(np.quantile(numbers, q))


def test_quantiles_of_a_histogram_lie_where_its_axis_has_them() -> None:
    histogram = Histogram((1.0, 10.0, 100.0, 1000.0), (4, 0, 1))
    expected = {0.0: 1.0, 0.4: 10**0.5, 0.8: 10.0, 0.9: 10**2.5, 1.0: 1000.0}
    assert {q: histogram.quantile(q) for q in expected} == pytest.approx(expected)
    assert Histogram((), ()).quantile(0.5) is None
