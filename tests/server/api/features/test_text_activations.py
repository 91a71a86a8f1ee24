"""What is active in texts, summed up without laying all of it out: as the plain table of tokens and features has it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saeclamp.types import Aggregate
from saeclamp_server.api.features.activation_table import PairCount, TextRow, TextTable
from saeclamp_server.api.features.text_activations import (
    FeatureId,
    TextActivations,
    _activations,
    active_features,
    dense_acts,
    sum_activations,
)
from saeclamp_server.api.likelihoods import Likelihoods
from saeclamp_server.api.model_client import GenerateResult, Prompt, TokenActivations
from saeclamp_server.errors import InvalidRequestError

SAES = ("low", "high")
ACTIVE = st.lists(
    st.tuples(
        st.dictionaries(st.integers(0, 4), st.sampled_from([-2.0, -1.0, 0.5, 3.0]), max_size=4),
        st.dictionaries(st.integers(0, 4), st.sampled_from([1.0, 2.0]), max_size=2),
    ),
    min_size=1,
    max_size=5,
)
Active = list[tuple[dict[int, float], dict[int, float]]]


def text(active: Active, num_active: int = 8) -> TextActivations:
    """A text whose first token is not read, and at whose others these features of both SAEs are active."""

    def rows(acts: dict[int, float]) -> Any:
        return sorted(acts.items(), key=lambda item: -abs(item[1]))

    readings = {
        position: TokenActivations([], {"low": rows(low), "high": rows(high)}, [])
        for position, (low, high) in enumerate(active, 1)
    }
    ids = tuple(range(len(active) + 1))
    outcome = GenerateResult((), "", None, readings, Likelihoods(), Likelihoods(), None)
    return _activations(Prompt(ids), outcome, (), SAES, num_active)


@given(ACTIVE)
def test_sums_are_those_of_the_whole_table(active: Active) -> None:
    read = text(active)
    features = [*active_features([read])]
    assert set(features) == {
        FeatureId(sae, index) for token in active for sae, acts in zip(SAES, token, strict=True) for index in acts
    }
    table = np.array([[token[SAES.index(sae)].get(index, 0.0) for sae, index in features] for token in active])
    assert dense_acts(read, features)[1:] == pytest.approx(table)
    sums = sum_activations(read)
    assert sums.keys.tolist() == [read.key(feature) for feature in features]
    if features:
        assert sums.max == pytest.approx(table.max(axis=0))
        assert sums.mean == pytest.approx(table.mean(axis=0))
        assert sums.frequency == pytest.approx((table != 0).mean(axis=0))
        peaks = np.abs(table).argmax(axis=0)
        assert sums.position.tolist() == (peaks + 1).tolist()
        assert sums.peak == pytest.approx(table[peaks, range(len(features))])


def test_strongest_features_are_those_that_were_read_first() -> None:
    read = text([({1: 3.0, 2: 0.5}, {}), ({}, {4: 1.0})])
    assert read.strongest(1, 1) == {"low": [(1, 3.0)]}
    assert read.strongest(2, 5) == {"high": [(4, 1.0)]}
    assert read.strongest(0, 5) == read.strongest(1, 0) == {}
    assert not read.is_cut
    assert text([({1: 3.0, 2: 0.5}, {})], num_active=2).is_cut


@pytest.mark.parametrize("aggregate", ["max", "mean", "frequency"])
def test_columns_of_texts_are_laid_out_as_they_are_asked_for(aggregate: Aggregate) -> None:
    texts = [text([({1: 3.0}, {}), ({1: 1.0, 2: 0.5}, {})]), text([({}, {1: 2.0})])]
    table = TextTable([TextRow.from_sums(sum_activations(one), aggregate) for one in texts])
    low_1, low_2, high_1 = table.keys.tolist()
    expected = {"max": [3.0, 0.5, 2.0], "mean": [2.0, 0.25, 2.0], "frequency": [1.0, 0.5, 1.0]}[aggregate]
    assert table.columns(table.keys).tolist() == [[*expected[:2], 0.0], [0.0, 0.0, expected[2]]]
    assert table.columns(table.keys[1:2]).tolist() == [[expected[1]], [0.0]]
    assert (table.peak(0, low_1), table.peak(0, low_2)) == ((3.0, 1), (0.5, 2))
    assert (table.peak(0, high_1), table.peak(1, high_1)) == (None, (2.0, 1))


def test_texts_in_which_too_much_is_active_are_refused() -> None:
    row = TextRow.from_sums(sum_activations(text([({1: 3.0, 2: 0.5}, {})])), "max")
    count = PairCount(most=3)
    count.add(row, "positive[0]")
    with pytest.raises(InvalidRequestError) as refused:
        count.add(row, "positive[1]")
    assert refused.value.param == "positive[1]"


def test_likelihoods_read_like_the_dicts_that_they_were_made_of() -> None:
    rows = [None, {5: -0.5, 7: -2.0}, {}, {1: -1.0}]
    kept = Likelihoods(rows)
    assert [*kept] == [{}, {5: -0.5, 7: -2.0}, {}, {1: -1.0}]
    assert [*kept.behind(2)] == [{}, {1: -1.0}]
    assert (len(kept), len(Likelihoods())) == (4, 0)
    with pytest.raises(IndexError):
        kept[4]
