"""The rows-only edit is the full encode, overwrite, decode and add-the-error-back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.e2e.checkpoints import make_sae
from tests.reference import ReferenceSAE, clamped_stream
from torch import Tensor

from saeclamp_saes import SAE, Site, read_sae
from saeclamp_saes.clamping import Edits, FeatureRows, residual_delta


def edits_of(moves: list[tuple[int, int, str, float]], live: list[float] | None = None) -> Edits:
    return Edits(
        token=torch.tensor([move[0] for move in moves]),
        row=torch.tensor([move[1] for move in moves]),
        target=torch.tensor([move[3] for move in moves]),
        keep=torch.tensor([1.0 if move[2] == "add" else 0.0 for move in moves]),
        live=torch.tensor(live or [1.0] * len(moves)),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sae(tmp_path_factory.mktemp("sae") / "sae", layer=1, d_in=48, d_sae=96, threshold=0.8)


moves = st.dictionaries(
    st.tuples(st.integers(0, 6), st.integers(0, 95)),
    st.tuples(st.sampled_from(["clamp", "add"]), st.floats(-50, 50, width=32)),
    min_size=1,
    max_size=30,
)


@settings(deadline=None)
@given(moves=moves, seed=st.integers(0, 1000), scale=st.sampled_from([0.1, 1.0, 30.0]))
def test_any_edits_equal_their_slow_twin(
    folder: Path, moves: dict[tuple[int, int], tuple[str, float]], seed: int, scale: float
) -> None:
    x = scale * torch.randn(7, 48, generator=torch.Generator().manual_seed(seed))
    flat = [(token, feature, op, value) for (token, feature), (op, value) in moves.items()]
    rows = FeatureRows.of([read_sae(folder)], torch.device("cpu"))
    delta, moved = residual_delta(x, rows, edits_of(flat))
    expected = clamped_stream(x, ReferenceSAE(folder), flat)
    assert torch.allclose(x + delta, expected, atol=1e-3, rtol=1e-4)
    acts = ReferenceSAE(folder).encode(x)
    assert torch.allclose(moved.acts, acts[edits_of(flat).token, edits_of(flat).row], atol=1e-3, rtol=1e-4)


def unit_sae() -> SAE:
    """Feature i reads coordinate i and writes twice that coordinate, above a threshold of 1."""
    return SAE(
        site=Site("resid_post", 0),
        W_enc=torch.eye(3),
        b_enc=torch.zeros(3),
        W_dec=2 * torch.eye(3),
        b_dec=torch.zeros(3),
        threshold=torch.ones(3),
    )


@pytest.mark.parametrize(
    ("stream", "op", "value", "expected"),
    [
        pytest.param([3.0, 4.0, 0.0], "clamp", 5.0, [7.0, 4.0, 0.0], id="clamp adds (5 - 3) x 2"),
        pytest.param([3.0, 4.0, 0.0], "clamp", 3.0, [3.0, 4.0, 0.0], id="own-activation-changes-nothing"),
        pytest.param([3.0, 4.0, 0.0], "clamp", 0.0, [-3.0, 4.0, 0.0], id="ablate"),
        pytest.param([0.9, 4.0, 0.0], "clamp", 0.0, [0.9, 4.0, 0.0], id="below-threshold-is-inactive"),
        pytest.param([0.9, 4.0, 0.0], "clamp", 5.0, [10.9, 4.0, 0.0], id="an inactive feature counts as zero"),
        pytest.param([3.0, 4.0, 0.0], "add", 5.0, [13.0, 4.0, 0.0], id="add ignores the activation"),
        pytest.param([3.0, 4.0, 0.0], "clamp", -1.0, [-5.0, 4.0, 0.0], id="negative targets are legal"),
    ],
)
def test_an_edit_by_hand(stream: list[float], op: str, value: float, expected: list[float]) -> None:
    rows = FeatureRows.of([unit_sae()], torch.device("cpu"))
    x = torch.tensor([stream])
    delta, moved = residual_delta(x, rows, edits_of([(0, 0, op, value)]))
    assert (x + delta).tolist() == [pytest.approx(expected)]
    assert moved.dose.item() == pytest.approx(delta.norm().item() / x.norm().item())


def test_a_pair_that_is_not_live_does_nothing() -> None:
    rows = FeatureRows.of([unit_sae()], torch.device("cpu"))
    x = torch.tensor([[3.0, 4.0, 0.0], [3.0, 4.0, 0.0]])
    delta, _ = residual_delta(x, rows, edits_of([(0, 0, "clamp", 9.0), (1, 0, "clamp", 9.0)], live=[0.0, 1.0]))
    assert delta.tolist() == [[0.0, 0.0, 0.0], [12.0, 0.0, 0.0]]


def test_all_activations_are_read_before_any_edit() -> None:
    """Two features that read the same coordinate: the second must not see the first one's push."""
    sae = unit_sae()
    both = SAE(
        sae.site, torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]), torch.zeros(2), _rows(2), sae.b_dec, _ones(2)
    )
    rows = FeatureRows.of([both], torch.device("cpu"))
    delta, moved = residual_delta(
        torch.tensor([[3.0, 0.0, 0.0]]), rows, edits_of([(0, 0, "clamp", 9.0), (0, 1, "clamp", 0.0)])
    )
    assert moved.acts.tolist() == [3.0, 3.0]
    assert delta.tolist() == [[(9.0 - 3.0) - 3.0, 0.0, 0.0]]


def test_saes_of_one_site_are_stacked_in_order() -> None:
    rows = FeatureRows.of([unit_sae(), unit_sae()], torch.device("cpu"))
    assert rows.encoder.shape == (6, 3)
    delta, _ = residual_delta(torch.tensor([[3.0, 4.0, 0.0]]), rows, edits_of([(0, 4, "clamp", 5.0)]))
    assert delta.tolist() == [[0.0, 2.0, 0.0]]


def _rows(count: int) -> Tensor:
    return torch.tensor([[1.0, 0.0, 0.0]] * count)


def _ones(count: int) -> Tensor:
    return torch.ones(count)
