"""An SAE that is planted in a tiny model is measured rightly; a copy that sits elsewhere is refused with the right hint."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.tiny_models import VOCABULARY, make
from torch import Tensor, nn

from saeclamp_saes.errors import VerificationError
from saeclamp_saes.evaluation.report import InterpretationScore, Verification
from saeclamp_saes.evaluation.topk_threshold import estimate_threshold
from saeclamp_saes.evaluation.verify import verify
from saeclamp_saes.lm.capture import record
from saeclamp_saes.lm.text import SAMPLE, SEQUENCE_LENGTH, read_text, tokenize_sequences
from saeclamp_saes.sae import SAE, TopK
from saeclamp_saes.sites import Site

WIDTH = 24
HOME = Site("resid_post", 1)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return make("llama", width=WIDTH, num_layers=4)


@pytest.fixture(scope="module")
def texts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(9)
    return [torch.randint(2, VOCABULARY, (64,), generator=generator) for _ in range(12)]


def vectors(model: nn.Module, texts: list[Tensor], site: Site) -> Tensor:
    return record(model, texts, [site], (), lambda *_: None).vectors[site]


def planted(x: Tensor, site: Site, num_directions: int = 14) -> SAE:
    """
    A pair of features for each of the first principal directions, one for either sign: exact inside their space.

    x: (num_tokens, d)
    """
    mean = x.mean(dim=0)
    directions = torch.linalg.svd(x - mean, full_matrices=False).Vh[:num_directions]
    encoder = torch.cat([directions, -directions])
    return SAE(
        reads=(site,),
        writes=(site,),
        W_enc=encoder.T,
        b_enc=-encoder @ mean,
        W_dec=encoder,
        b_dec=mean,
        threshold=torch.zeros(2 * num_directions),
    )


@pytest.fixture(scope="module")
def sae(model: nn.Module, texts: list[Tensor]) -> SAE:
    return planted(vectors(model, texts, HOME), HOME)


@pytest.fixture(scope="module")
def result(sae: SAE, model: nn.Module, texts: list[Tensor]) -> Verification:
    return verify(sae, model, texts)


def at(sae: SAE, site: Site) -> SAE:
    return replace(sae, reads=(site,), writes=(site,))


def test_the_planted_sae_fits(result: Verification) -> None:
    assert result.verdict == "ok"
    assert result.fits
    assert result.readings[0].name == "as claimed"
    assert result.explained_variance > 0.8


def test_its_figures_are_those_of_the_tokens_that_are_not_first(
    result: Verification, sae: SAE, model: nn.Module, texts: list[Tensor]
) -> None:
    x = torch.cat([part[1:] for part in vectors(model, texts, HOME).split(64)]).double()
    acts = sae.to(dtype=torch.float64).encode(x)
    error = x - (acts @ sae.W_dec.double() + sae.b_dec.double())
    assert (result.num_tokens, result.num_sinks) == (12 * 63, 0)
    assert result.l0_mean == pytest.approx(14.0)  # one of each pair
    assert (result.l0_p5, result.l0_p95) == (14.0, 14.0)
    expected = 1 - error.square().sum() / (x - x.mean(dim=0)).square().sum()
    assert result.explained_variance == pytest.approx(float(expected), abs=1e-5)
    assert result.pca_explained_variance == pytest.approx(result.explained_variance, abs=1e-3)
    assert result.dead_share == 0.0
    assert result.dense_share == 1.0
    assert result.calibrated_threshold is None


def test_the_model_loses_less_with_the_reconstruction_than_with_the_mean(model: nn.Module, texts: list[Tensor]) -> None:
    """On text that the model is certain of: what it says itself, its likeliest token again and again."""
    said = [text[:2] for text in texts]
    with torch.no_grad():
        for _ in range(40):
            said = [torch.cat([text, model(input_ids=text[None]).logits[0, -1:].argmax(dim=-1)]) for text in said]
    whole = verify(planted(vectors(model, said, HOME), HOME, WIDTH), model, said).cross_entropy
    part = verify(planted(vectors(model, said, HOME), HOME, 8), model, said).cross_entropy
    assert whole.spliced == pytest.approx(whole.clean, abs=1e-4)
    assert whole.recovered_against_mean == pytest.approx(1.0, abs=1e-3)
    assert whole.clean < part.spliced < min(part.mean, part.zero)
    assert part.recovered_against_mean is not None
    assert 0 < part.recovered_against_mean < 1
    assert part.recovered_against_mean == (part.mean - part.spliced) / (part.mean - part.clean)


@pytest.mark.parametrize("claimed", [Site("resid_post", 0), Site("resid_post", 2)], ids=str)
def test_one_block_off_is_refused_with_the_place_where_it_fits(
    claimed: Site, sae: SAE, model: nn.Module, texts: list[Tensor]
) -> None:
    result = verify(at(sae, claimed), model, texts)
    assert not result.fits
    assert result.verdict.startswith("It fits better at resid_post 1 (")
    assert result.verdict.endswith("as claimed): use ?site=resid_post.1.")


@pytest.mark.parametrize(
    ("home", "claimed"),
    [
        (Site("mlp_out", 2), Site("resid_post", 2)),
        (Site("attn_out", 1), Site("mlp_out", 1)),
        (Site("mlp_in", 2), Site("resid_mid", 2)),
        (Site("resid_mid", 1), Site("mlp_in", 1)),
        (Site("mlp_in_no_gain", 1), Site("mlp_in", 1)),
        (Site("resid_pre", 0), Site("resid_post", 0)),
    ],
    ids=str,
)
def test_another_place_of_the_block_is_found(home: Site, claimed: Site, model: nn.Module, texts: list[Tensor]) -> None:
    right = planted(vectors(model, texts, home), home)
    assert verify(right, model, texts).fits
    result = verify(at(right, claimed), model, texts)
    assert f"It fits better at {home} " in result.verdict
    assert f"?site={home.point}.{home.layer}" in result.verdict


def test_what_fits_nowhere_is_refused_plainly(model: nn.Module, texts: list[Tensor]) -> None:
    generator = torch.Generator().manual_seed(4)
    noise = at(planted(torch.randn(50, WIDTH, generator=generator), HOME, num_directions=3), HOME)
    result = verify(noise, model, texts)
    assert result.verdict.startswith("It does not fit this model: it explains")
    assert "at resid_post 1" in result.verdict


def test_a_transcoder_is_measured_against_what_it_writes_to(texts: list[Tensor]) -> None:
    """The best linear map from what an MLP reads to what it writes, as a skip connection without features."""
    model = make("gpt2", width=WIDTH, num_layers=4)
    reads, writes = Site("mlp_in", 2), Site("mlp_out", 2)
    x, y = vectors(model, texts, reads), vectors(model, texts, writes)
    skip = torch.linalg.lstsq(x - x.mean(dim=0), y - y.mean(dim=0)).solution
    features = planted(x, reads, num_directions=1)
    right = replace(
        features,
        kind="skip_transcoder",
        writes=(writes,),
        W_dec=torch.zeros_like(features.W_dec),
        b_dec=y.mean(dim=0) - x.mean(dim=0) @ skip,
        W_skip=skip,
    )
    result = verify(right, model, texts)
    assert result.fits, result.verdict
    assert (result.reads, result.writes) == (("mlp_in 2",), ("mlp_out 2",))
    moved = verify(replace(right, reads=(Site("mlp_in", 1),), writes=(Site("mlp_out", 1),)), model, texts)
    assert "use ?site=mlp_in.2&site_out=mlp_out.2" in moved.verdict
    unnormed = verify(replace(right, reads=(Site("resid_mid", 2),)), model, texts)
    assert "reading mlp_in 2" in unnormed.verdict
    assert "use ?site=mlp_in.2." in unnormed.verdict


def test_a_crosscoder_is_measured_at_all_its_places(model: nn.Module, texts: list[Tensor]) -> None:
    places = (Site("resid_post", 0), Site("resid_post", 2))
    x = torch.cat([vectors(model, texts, place) for place in places], dim=1)
    right = replace(planted(x, HOME, num_directions=30), reads=places, writes=places, kind="crosscoder")
    result = verify(right, model, texts)
    assert result.fits, result.verdict
    moved = tuple(Site("resid_post", place.layer + 1) for place in places)
    assert (
        "It fits better reading resid_post 0, resid_post 2"
        in verify(replace(right, reads=moved, writes=moved), model, texts).verdict
    )


@pytest.mark.parametrize("home", [Site("resid_mid", 1), Site("mlp_in_no_gain", 2), Site("attn_z", 1)], ids=str)
def test_a_model_in_bfloat16_is_measured_in_float32(home: Site, model: nn.Module, texts: list[Tensor]) -> None:
    right = planted(vectors(model, texts, home), home)
    full, half = verify(right, model, texts), verify(right, deepcopy(model).bfloat16(), texts)
    assert half.fits, half.verdict
    assert half.explained_variance == pytest.approx(full.explained_variance, abs=0.01)
    assert half.cross_entropy.spliced == pytest.approx(full.cross_entropy.spliced, rel=0.01)
    assert half.cross_entropy.mean == pytest.approx(full.cross_entropy.mean, rel=0.01)


def test_sinks_are_counted_and_left_alone(texts: list[Tensor]) -> None:
    """A token whose embedding is enormous: with it in, its direction would be all the variance there is."""
    model = make("llama", width=WIDTH, num_layers=4)
    with torch.no_grad():
        model.get_input_embeddings().weight[5] *= 1000  # type: ignore[operator, union-attr]
    num_sinks = sum(int((text[1:] == 5).sum()) for text in texts)
    assert num_sinks > 0
    x = torch.cat(
        [part[1:][text[1:] != 5] for part, text in zip(vectors(model, texts, HOME).split(64), texts, strict=True)]
    )
    result = verify(planted(x, HOME), model, texts)
    assert (result.num_tokens, result.num_sinks) == (12 * 63 - num_sinks, num_sinks)
    assert result.fits
    assert verify(planted(x, HOME), model, texts, special_ids={5}).num_sinks == 0


def test_few_tokens_are_a_warning(result: Verification) -> None:
    assert result.warnings == ("Only 756 tokens were measured; give a longer text for figures that can be relied on.",)


def test_what_cannot_be_measured_is_an_error(sae: SAE, model: nn.Module, texts: list[Tensor]) -> None:
    with pytest.raises(VerificationError, match="layers 0 to 3"):
        verify(at(sae, Site("resid_post", 9)), model, texts)
    wide = planted(torch.randn(50, WIDTH + 1), HOME)
    with pytest.raises(
        VerificationError, match=r"reads vectors of width 25, and resid_post 1 of this model is 24 wide"
    ):
        verify(wide, model, texts)
    with pytest.raises(VerificationError, match="cannot be measured alone"):
        verify(replace(sae, kind="clt_layer"), model, texts)
    with pytest.raises(VerificationError, match="no ordinary tokens"):
        verify(sae, model, texts, special_ids=range(VOCABULARY))


def test_progress_is_told_of_four_runs_over_the_text(sae: SAE, model: nn.Module, texts: list[Tensor]) -> None:
    told: list[tuple[str, int, int]] = []
    verify(sae, model, texts[:3], progress=lambda doing, done, total: told.append((doing, done, total)))
    runs = list(dict.fromkeys(doing for doing, _, _ in told))
    assert len(runs) == 4
    assert [event for event in told if event[0] == runs[0]] == [(runs[0], done, 3) for done in range(4)]


def test_the_result_is_json(result: Verification) -> None:
    broken = replace(result, explained_variance=float("-inf"))
    told = json.loads(json.dumps(broken.to_json(), allow_nan=False))
    assert told["fits"] is True
    assert told["explained_variance"] is None
    assert told["writes"] == ["resid_post 1"]
    assert told["readings"][0]["name"] == "as claimed"
    assert told["cross_entropy"]["clean"] == result.cross_entropy.clean


def figure(explained: float, pca: float, place: str = "resid_post 1") -> InterpretationScore:
    return InterpretationScore("", explained, "", (place,), pca)


@pytest.mark.parametrize(
    ("own", "other", "refuted"),
    [
        pytest.param(figure(0.6, 0.4), figure(0.71, 0.4), True, id="same-place-by-more-than-a-tenth"),
        pytest.param(figure(0.6, 0.4), figure(0.69, 0.4), False, id="same-place-by-less"),
        pytest.param(
            figure(0.6, 0.4), figure(0.75, 0.45, "resid_post 2"), True, id="elsewhere-and-better-than-pca-there"
        ),
        pytest.param(
            figure(0.6, 0.4), figure(0.75, 0.60, "resid_post 2"), False, id="elsewhere-only-because-it-is-easy"
        ),
        pytest.param(figure(0.4, 0.4), figure(0.75, 0.80, "resid_post 2"), True, id="elsewhere-and-bad-as-claimed"),
        pytest.param(figure(0.7, 0.4), figure(0.75, 0.41, "resid_post 2"), True, id="a-like-place-better-in-both-ways"),
        pytest.param(figure(0.7, 0.4), figure(0.75, 0.44, "resid_post 2"), False, id="a-like-place-better-in-one-way"),
        pytest.param(figure(0.1, 0.4), figure(0.15, 0.40, "resid_post 2"), False, id="a-like-place-as-bad"),
    ],
)
def test_when_another_reading_refutes_the_claimed_one(
    own: InterpretationScore, other: InterpretationScore, refuted: bool
) -> None:
    assert other.fits_better_than(own) is refuted


def test_the_calibrated_threshold_keeps_as_many_as_topk(model: nn.Module, texts: list[Tensor]) -> None:
    x = vectors(model, texts, HOME)
    top_k = replace(planted(x, HOME, WIDTH), top_k=TopK(5), architecture="topk")
    result = verify(top_k, model, texts)
    assert result.l0_mean == 5.0
    threshold = result.calibrated_threshold
    assert threshold is not None
    ordinary = torch.cat([part[1:] for part in x.split(64)])
    acts = replace(top_k, top_k=None, threshold=torch.full_like(top_k.threshold, threshold)).encode(ordinary)
    assert int(acts.count_nonzero()) == 5 * len(ordinary)


def test_the_calibrated_threshold_does_not_depend_on_the_parts() -> None:
    x = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(2))
    top_k = replace(planted(x, HOME, WIDTH), top_k=TopK(3))
    whole = estimate_threshold(top_k, x)
    assert estimate_threshold(top_k, x, encode_bytes=7 * 2 * WIDTH * 4) == pytest.approx(whole)


def test_a_signed_topk_has_no_threshold() -> None:
    x = torch.randn(40, WIDTH)
    assert estimate_threshold(replace(planted(x, HOME), top_k=TopK(3, signed=True)), x) is None


class Words:
    """A tokenizer of one id a word."""

    bos_token_id = 1

    def __init__(self, adds_bos: bool) -> None:
        self.adds_bos = adds_bos

    def __call__(self, text: str, add_special_tokens: bool = True, verbose: bool = True) -> Any:
        ids = [1] if self.adds_bos and add_special_tokens else []
        return type("Encoding", (), {"input_ids": ids + [100 + i for i, _ in enumerate(text.split())]})


@pytest.mark.parametrize("adds_bos", [False, True])
def test_a_text_is_cut_into_sequences_that_begin_as_the_models_do(adds_bos: bool) -> None:
    cut = tokenize_sequences("word " * 700, Words(adds_bos), num_tokens=600)
    assert [len(part) for part in cut] == ([256, 256, 91] if adds_bos else [256, 256, 88])
    assert all((int(part[0]) == 1) is adds_bos for part in cut)
    assert torch.cat([part[adds_bos:] for part in cut]).tolist() == list(range(100, 700))


def test_a_remainder_of_few_tokens_is_dropped_and_a_text_of_few_is_an_error() -> None:
    assert [len(part) for part in tokenize_sequences("word " * 262, Words(False))] == [SEQUENCE_LENGTH]
    with pytest.raises(VerificationError, match="only 5 tokens"):
        tokenize_sequences("word " * 5, Words(False))


def test_a_text_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes("naïve".encode("latin-1"))
    with pytest.raises(VerificationError, match="not a text file in UTF-8"):
        read_text(tmp_path / "latin")
    with pytest.raises(VerificationError, match="cannot be read: No such file"):
        read_text(tmp_path / "missing")


def test_the_packaged_text_has_words_enough_for_the_default() -> None:
    assert len(SAMPLE.read_text(encoding="utf-8").split()) > 3000
