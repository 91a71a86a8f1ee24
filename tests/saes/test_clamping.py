"""The rows-only edit is the full encode, overwrite, decode and add-the-error-back, for every architecture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.oracles.reference import ReferenceSAE, clamped, moved
from tests.support.checkpoints import make_sae
from tests.support.largest_tensor import LargestTensor
from tests.support.tiny_saes import ARCHITECTURES, D_IN, D_SAE, NUM_TOKENS
from torch import Tensor

from saeclamp_saes import SAE, Site, clamping, read_sae
from saeclamp_saes.clamping import EditRows, UniqueFeatures, decoder_delta, read_acts


def edits_of(moves: list[tuple[int, int, str, float]]) -> EditRows:
    return EditRows(
        token=torch.tensor([move[0] for move in moves]),
        feature=torch.tensor([move[1] for move in moves]),
        moves=torch.tensor([clamping.UPDATES[op](value) for _, _, op, value in moves], dtype=torch.float64),
    )


def edited(x: Tensor, y: Tensor, sae: SAE, moves: list[tuple[int, int, str, float]]) -> Tensor:
    edits = edits_of(moves)
    edits = edits._replace(moves=edits.moves.to(x.dtype))
    return y + decoder_delta(sae, edits, read_acts(x, sae, edits), len(y))[0]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = ARCHITECTURES[request.param]
    return make_sae(tmp_path_factory.mktemp("sae") / "sae", layer=1, d_in=D_IN, d_sae=D_SAE, threshold=0.8, **config)


MOVES = st.dictionaries(
    st.tuples(st.integers(0, NUM_TOKENS - 1), st.integers(0, D_SAE - 1)),
    st.tuples(st.sampled_from([*clamping.UPDATES]), st.floats(-50, 50, width=32)),
    min_size=1,
    max_size=30,
)


@settings(deadline=None, max_examples=40)
@given(moves=MOVES, seed=st.integers(0, 1000), scale=st.sampled_from([0.1, 1.0, 30.0]))
def test_any_edits_are_exact(
    folder: Path, moves: dict[tuple[int, int], tuple[str, float]], seed: int, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = scale * torch.randn(NUM_TOKENS, D_IN, generator=generator, dtype=torch.float64)
    y = x if "hook_name_out" not in (folder / "cfg.json").read_text() else torch.randn_like(x)
    flat = [(token, feature, op, value) for (token, feature), (op, value) in moves.items()]
    expected = clamped(x, y, ReferenceSAE(folder, torch.float64), flat)
    folded = read_sae(folder)
    # the fold to fp32 rounds; the clamp itself, between one SAE's full and row-wise computation, does not
    same = edited(x, y, folded.to(dtype=torch.float64), flat)
    assert (same - _full(x, y, folded.to(dtype=torch.float64), flat)).abs().max() < 1e-10
    in_fp32 = edited(x.float(), y.float(), folded, flat)
    size = (expected - y).abs().max().clamp_min(scale)
    assert (in_fp32 - expected).abs().max() < 1e-4 * size


def _full(x: Tensor, y: Tensor, sae: SAE, moves: list[tuple[int, int, str, float]]) -> Tensor:
    """Encode everything, overwrite, decode everything and add the error, with the canonical SAE's own encode and decode."""
    acts = sae.encode(x)
    changed = acts.clone()
    for token, feature, op, value in moves:
        changed[token, feature] = moved(acts[token, feature], op, value)
    return sae.decode(changed, x) + (y - sae.decode(acts, x))


def test_a_topk_is_encoded_in_parts_with_the_same_result(tmp_path: Path) -> None:
    sae = read_sae(make_sae(tmp_path / "sae", layer=1, d_in=D_IN, d_sae=D_SAE, architecture="topk", k=9))
    x = torch.randn(50, D_IN, generator=torch.Generator().manual_seed(0))
    edits = edits_of([(token, (7 * token) % D_SAE, "clamp", 1.0) for token in (3, 49, 0, 3, 20)])
    whole = read_acts(x, sae, edits).acts
    two_tokens = 2 * D_SAE * 4
    assert read_acts(x, sae, edits, two_tokens).acts.tolist() == pytest.approx(whole.tolist(), abs=1e-6)
    assert whole.tolist() == pytest.approx(sae.encode(x)[edits.token, edits.feature].tolist(), abs=1e-5)


def test_rows_are_what_a_clamp_needs_and_only_that(folder: Path) -> None:
    sae = read_sae(folder)
    rows = sae.rows([5, 90])
    assert rows.encoder.shape == rows.decoder.shape == (2, D_IN)
    assert torch.equal(rows.encoder, sae.W_enc[:, [5, 90]].T)
    assert torch.equal(rows.decoder, sae.W_dec[[5, 90]])
    assert rows.encoder.untyped_storage().nbytes() == 2 * D_IN * 4
    everything = sae.rows()
    assert everything.encoder.is_contiguous()
    assert everything.encoder.data_ptr() == sae.W_enc.data_ptr()


def unit_sae() -> SAE:
    """Feature i reads coordinate i and writes twice that coordinate, above a threshold of 1."""
    return SAE(
        reads=(Site("resid_post", 0),),
        writes=(Site("resid_post", 0),),
        W_enc=torch.eye(3, dtype=torch.float64),
        b_enc=torch.zeros(3, dtype=torch.float64),
        W_dec=2 * torch.eye(3, dtype=torch.float64),
        b_dec=torch.zeros(3, dtype=torch.float64),
        threshold=torch.ones(3, dtype=torch.float64),
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
        pytest.param([3.0, 4.0, 0.0], "at_least", 5.0, [7.0, 4.0, 0.0], id="at_least raises to 5"),
        pytest.param([3.0, 4.0, 0.0], "at_least", 2.0, [3.0, 4.0, 0.0], id="at_least leaves more alone"),
        pytest.param([0.9, 4.0, 0.0], "at_least", 2.0, [4.9, 4.0, 0.0], id="at_least raises an inactive feature"),
        pytest.param([3.0, 4.0, 0.0], "at_most", 2.0, [1.0, 4.0, 0.0], id="at_most lowers to 2"),
        pytest.param([3.0, 4.0, 0.0], "at_most", 5.0, [3.0, 4.0, 0.0], id="at_most leaves less alone"),
        pytest.param([0.9, 4.0, 0.0], "at_most", -1.0, [-1.1, 4.0, 0.0], id="at_most lowers an inactive feature"),
        pytest.param([3.0, 4.0, 0.0], "scale", 2.0, [9.0, 4.0, 0.0], id="scale doubles"),
        pytest.param([3.0, 4.0, 0.0], "scale", -1.0, [-9.0, 4.0, 0.0], id="scale turns round"),
        pytest.param([3.0, 4.0, 0.0], "scale", 0.0, [-3.0, 4.0, 0.0], id="scale by 0 ablates"),
        pytest.param([0.9, 4.0, 0.0], "scale", 9.0, [0.9, 4.0, 0.0], id="scale leaves an inactive feature alone"),
    ],
)
def test_an_edit_by_hand(stream: list[float], op: str, value: float, expected: list[float]) -> None:
    x = torch.tensor([stream], dtype=torch.float64)
    edits = edits_of([(0, 0, op, value)])
    delta, lengths = decoder_delta(unit_sae(), edits, read_acts(x, unit_sae(), edits), 1)
    assert (x + delta).tolist() == [pytest.approx(expected)]
    assert lengths.tolist() == [pytest.approx(delta.norm().item())]


def test_all_activations_are_read_before_any_edit() -> None:
    """Two features that read the same coordinate: the second must not see the first one's push."""
    reads_first = torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    two = torch.zeros(2, dtype=torch.float64)
    sae = replace(unit_sae(), W_enc=reads_first, b_enc=two, W_dec=reads_first.T, threshold=two + 1)
    x = torch.tensor([[3.0, 0.0, 0.0]], dtype=torch.float64)
    edits = edits_of([(0, 0, "clamp", 9.0), (0, 1, "clamp", 0.0)])
    before = read_acts(x, sae, edits)
    assert before.acts.tolist() == [3.0, 3.0]
    assert decoder_delta(sae, edits, before, 1)[0].tolist() == [[(9.0 - 3.0) - 3.0, 0.0, 0.0]]


def test_an_sae_that_writes_to_several_sites_has_a_part_of_each_decoder_row_there() -> None:
    sites = (Site("mlp_out", 0), Site("mlp_out", 1))
    both = torch.cat((torch.eye(3), 5 * torch.eye(3)), dim=1).double()
    sae = replace(unit_sae(), writes=sites, W_dec=both, b_dec=torch.zeros(6, dtype=torch.float64))
    x = torch.tensor([[3.0, 4.0, 0.0]], dtype=torch.float64)
    edits = edits_of([(0, 1, "clamp", 6.0)])
    before = read_acts(x, sae, edits)
    assert decoder_delta(sae, edits, before, 1, write=0)[0].tolist() == [[0.0, 2.0, 0.0]]
    assert decoder_delta(sae, edits, before, 1, write=1)[0].tolist() == [[0.0, 10.0, 0.0]]


def test_one_product_of_distinct_features_gives_what_rows_pair_by_pair_give() -> None:
    generator = torch.Generator().manual_seed(3)
    sae = unit_sae()
    x = torch.randn(5, 3, generator=generator, dtype=sae.W_dec.dtype)
    token = torch.tensor([0, 0, 1, 3, 3, 3, 4])
    feature = torch.tensor([0, 1, 1, 0, 1, 1, 0])  # one feature twice at one token: two ranges of an edit
    moves = torch.tensor([[*clamping.UPDATES["clamp"](float(value))] for value in range(-3, 4)], dtype=x.dtype)
    pairs = EditRows(token, feature, moves)
    product = pairs._replace(distinct=UniqueFeatures(*torch.unique(feature, return_inverse=True)))
    acts, expected = read_acts(x, sae, product), read_acts(x, sae, pairs)
    assert torch.allclose(acts.acts, expected.acts, atol=1e-6)
    for one, other in zip(decoder_delta(sae, product, acts, 5), decoder_delta(sae, pairs, expected, 5), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("has_distinct", [False, True])
@pytest.mark.parametrize("architecture", ["standard", "topk"])
def test_any_number_of_pairs_is_done_in_parts_of_little_memory_with_the_same_result(
    tmp_path: Path, architecture: str, has_distinct: bool
) -> None:
    options = {"k": 9} if architecture == "topk" else {}
    sae = read_sae(make_sae(tmp_path / "sae", layer=1, d_in=D_IN, d_sae=D_SAE, architecture=architecture, **options))
    sae = sae.to(dtype=torch.float64)
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(40, D_IN, generator=generator, dtype=torch.float64)
    token = torch.arange(40).repeat_interleave(50)
    feature = torch.randint(D_SAE, (2000,), generator=generator)
    moves = torch.tensor([[*clamping.UPDATES["clamp"](value)] for value in torch.linspace(-3, 3, 2000).tolist()])
    edits = EditRows(token, feature, moves.double())
    if has_distinct:
        edits = edits._replace(distinct=UniqueFeatures(*torch.unique(feature, return_inverse=True)))
    whole = read_acts(x, sae, edits)
    little = 20_000  # of the 1,536,000 bytes that all rows of all pairs would take at once
    with LargestTensor() as largest:
        acts = read_acts(x, sae, edits, little)
        delta, lengths = decoder_delta(sae, edits, acts, 40, part_bytes=little)
    assert torch.allclose(acts.acts, whole.acts, atol=1e-12)
    expected, expected_lengths = decoder_delta(sae, edits, whole, 40)
    assert torch.allclose(delta, expected, atol=1e-9)
    assert torch.allclose(lengths, expected_lengths, atol=1e-9)
    of_their_own_size = [t.untyped_storage().nbytes() for t in (sae.W_enc, sae.W_dec, x, edits.moves)]
    assert largest.num_bytes <= max(little, *of_their_own_size)
