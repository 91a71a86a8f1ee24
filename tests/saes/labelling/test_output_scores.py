"""The logit lens, output scores and neighbours are those of the whole model, run one feature at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.tiny_labels import D_SAE, DEAD, SITE, StopAfter, sae
from tests.support.tiny_models import ARCHITECTURES, NUM_LAYERS, VOCABULARY, make
from tests.support.tiny_training import reader, tokenizer
from torch import Tensor, nn

from saeclamp_saes import SAE, Site
from saeclamp_saes.errors import LabelError
from saeclamp_saes.labelling.neighbours import measure_neighbours
from saeclamp_saes.labelling.output_scores import PREFIX, Prefix, measure_outputs
from saeclamp_saes.lm.architectures import apply_edits
from saeclamp_saes.lm.harvest import ActivationReader
from saeclamp_saes.lm.logit_lens import LogitLens, edits_resid, writes_to_resid
from saeclamp_saes.progress import no_progress
from saeclamp_saes.sae import InputNorm, TopK

IDS = torch.tensor([[2, 3, 4]])
LAST = Site("resid_post", NUM_LAYERS - 1)
NAMED_SHARE = 0.6
"""Share of the likeliest token that a named one must have: more than elsewhere, as a random model is less sure."""
MAX_ACTS = torch.linspace(0.5, 8.0, D_SAE).index_fill(0, torch.tensor([DEAD]), float("nan"))


def model_of(name: str) -> Any:
    model: Any = make(name)
    if getattr(model.config, "final_logit_softcapping", None):
        model.config.final_logit_softcapping = None  # which bends all logits alike
    return model


@torch.no_grad()
def logits_with(model: nn.Module, site: Site, new: Tensor) -> Tensor:
    """(vocabulary,) of the last token, whose vector at a place is replaced."""

    def put(x: Tensor) -> Tensor:
        return torch.cat([x[:, :-1], new[None, None]], dim=1)

    with apply_edits(model, {site: put}):
        logits: Tensor = model(input_ids=IDS).logits[0, -1]
    return logits


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_lens_is_what_the_model_makes_of_the_direction_alone(name: str) -> None:
    """A very long vector behind the last block becomes the direction over its length; and no direction is the bias."""
    model = model_of(name)
    directions = torch.randn(5, 16, generator=torch.Generator().manual_seed(3))
    lens = LogitLens(model, VOCABULARY).logits(directions)
    nothing = logits_with(model, LAST, torch.zeros(16))
    for direction, got in zip(directions, lens, strict=True):
        centered = direction - direction.mean() if name.startswith("gpt") else direction
        scale = centered.square().mean().sqrt()
        whole = logits_with(model, LAST, 1e4 * direction) - nothing
        torch.testing.assert_close(got / scale, whole, rtol=1e-3, atol=1e-3)


def test_tied_embeddings_are_the_unembedding() -> None:
    model = model_of("llama")
    model.lm_head.weight = model.model.embed_tokens.weight
    lens = LogitLens(model, VOCABULARY).logits(torch.eye(16))
    expected = model.model.embed_tokens.weight.T * model.model.norm.weight[:, None]
    torch.testing.assert_close(lens, expected.detach())


def test_a_vocabulary_padded_beyond_the_tokenizer_has_no_tokens_there() -> None:
    assert LogitLens(model_of("llama"), 90).logits(torch.eye(16)).shape == (16, 90)


def test_a_model_that_is_not_in_the_table_has_no_lens() -> None:
    with pytest.raises(LabelError, match="where the final norm of a Linear is"):
        LogitLens(nn.Linear(2, 2), 2)


@torch.no_grad()
def slow_score(reader: ActivationReader, of: SAE, feature: int, target: float) -> tuple[float, float, list[int]]:
    """One feature through the whole model, without a cache; ranks by counting."""
    model, ids = reader.model, reader.tokenizer(PREFIX).input_ids

    def clamp(x: Tensor) -> Tensor:
        acts = of.encode(x[0, -1])
        moved = acts.clone()
        moved[feature] = target
        new = x[0, -1] + of.decode(moved, x[0, -1]) - of.decode(acts, x[0, -1])
        return torch.cat([x[:, :-1], new[None, None]], dim=1)

    clean = model(input_ids=torch.tensor([ids])).logits[0, -1].softmax(dim=0).tolist()
    with apply_edits(model, {of.site: clamp}):
        probabilities = model(input_ids=torch.tensor([ids])).logits[0, -1].softmax(dim=0).tolist()
    lens = LogitLens(model, VOCABULARY).logits(of.W_dec[feature][None])[0].tolist()
    top = sorted(range(VOCABULARY), key=lambda token: -lens[token])[:20]
    scores = {}
    for token in top:
        rank = sum(other > probabilities[token] for other in probabilities)
        scores[token] = (1 - rank / VOCABULARY) * probabilities[token]
    best = max(scores, key=scores.__getitem__)
    likeliest = sorted(top, key=lambda token: -probabilities[token])[:3]
    named = [token if probabilities[token] >= NAMED_SHARE * probabilities[likeliest[0]] else -1 for token in likeliest]
    return scores[best], clean[best], named


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_output_scores_are_those_of_one_feature_at_a_time(name: str, tmp_path: Path) -> None:
    reading, of = reader(make(name)), sae()
    at_once = 7 * VOCABULARY  # batches that do not divide the features
    found = measure_outputs(
        tmp_path, of, reading, MAX_ACTS, no_progress, logits_at_once=at_once, named_share=NAMED_SHARE
    )
    assert np.isnan(found.score[DEAD])
    assert -1 in np.delete(found.named, DEAD, axis=0)
    for feature in range(D_SAE):
        if feature == DEAD:
            continue
        score, before, named = slow_score(reading, of, feature, 2 * float(MAX_ACTS[feature]))
        assert found.score[feature] == pytest.approx(score, rel=1e-3)
        assert found.before[feature] == pytest.approx(before, rel=1e-3)
        assert found.named[feature].tolist() == named


@pytest.mark.parametrize(
    "options", [{"top_k": TopK(5)}, {"input_norm": InputNorm(center=True, scale="std", eps=1e-5)}], ids=["topk", "norm"]
)
def test_what_is_amplified_is_what_a_clamp_moves(tmp_path: Path, options: dict[str, Any]) -> None:
    of = replace(sae(), **options)
    found = measure_outputs(tmp_path, of, reader(), MAX_ACTS, no_progress)
    for feature in (0, 7, 20):
        score, _, _ = slow_score(reader(), of, feature, 2 * float(MAX_ACTS[feature]))
        assert found.score[feature] == pytest.approx(score, rel=1e-3)


def test_the_prefix_is_not_changed_by_reading_on() -> None:
    prefix = Prefix.read(reader(), PREFIX)
    first, second = (prefix.logits(3, SITE, lambda x: None) for _ in range(2))
    assert torch.equal(first, second)
    ids = tokenizer()(PREFIX).input_ids
    whole = make("llama")(input_ids=torch.tensor([ids])).logits[0, -1]
    torch.testing.assert_close(first, whole.expand(3, -1).detach(), rtol=1e-4, atol=1e-4)


def test_the_first_and_last_tokens_of_the_lens_are_kept(tmp_path: Path) -> None:
    of = sae()
    found = measure_outputs(tmp_path, of, reader(), MAX_ACTS, no_progress)
    for feature, logits in enumerate(LogitLens(make("llama"), VOCABULARY).logits(of.W_dec).tolist()):
        order = sorted(range(VOCABULARY), key=lambda token: -logits[token])
        assert found.top[feature].tolist() == order[:20]
        assert found.bottom[feature].tolist() == order[::-1][:10]
        assert found.top_value[feature].tolist() == pytest.approx([logits[token] for token in order[:20]])
        assert found.bottom_value[feature].tolist() == pytest.approx([logits[token] for token in order[::-1][:10]])


def placed(reads: str, writes: str, **options: Any) -> SAE:
    return replace(sae(), reads=(Site.parse(f"{reads} 1"),), writes=(Site.parse(f"{writes} 1"),), **options)


@pytest.mark.parametrize(
    ("name", "of", "has_lens", "has_score"),
    [
        ("llama", placed("resid_post", "resid_post"), True, True),
        ("llama", placed("resid_mid", "resid_mid"), True, True),
        ("llama", placed("mlp_out", "mlp_out"), True, False),
        ("llama", placed("mlp_in", "mlp_out", kind="transcoder"), True, False),
        ("llama", placed("mlp_in", "mlp_out_raw", kind="transcoder"), True, False),
        ("gemma2", placed("mlp_in", "mlp_out_raw", kind="transcoder"), False, False),
        ("gemma2", placed("attn_out_raw", "attn_out_raw"), False, False),
        ("llama", placed("attn_z", "attn_z"), False, False),
        ("llama", sae(Site("resid_post", 0), SITE, kind="crosscoder"), False, False),
    ],
)
def test_only_what_goes_to_the_stream_has_a_lens(name: str, of: SAE, has_lens: bool, has_score: bool) -> None:
    assert (writes_to_resid(make(name), of), edits_resid(of)) == (has_lens, has_score)


def slow_neighbours(W_dec: Tensor, feature: int) -> list[tuple[int, float]]:
    rows = W_dec.tolist()

    def cosine(a: list[float], b: list[float]) -> float:
        lengths = sum(x * x for x in a) ** 0.5 * sum(x * x for x in b) ** 0.5
        return sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0

    others = [(other, cosine(rows[feature], row)) for other, row in enumerate(rows) if other != feature]
    return sorted(others, key=lambda pair: -pair[1])[:5]


def test_neighbours_are_the_largest_cosines(tmp_path: Path) -> None:
    W_dec = sae().W_dec
    W_dec[3] = 2.5 * W_dec[9] + 0.01 * W_dec[7]
    W_dec[11] = 0.0
    found = measure_neighbours(tmp_path, W_dec, no_progress)
    assert found.indices[3][0] == 9
    assert found.cosines[3][0] > 0.999
    for feature in range(D_SAE):
        slow = slow_neighbours(W_dec, feature)
        assert found.cosines[feature].tolist() == pytest.approx([cosine for _, cosine in slow], abs=1e-5)
        if feature != 11:  # all are equally far from a row of zeros
            assert found.indices[feature].tolist() == [other for other, _ in slow]


@pytest.mark.parametrize("at_once", [1, 24, 5 * 24, 23 * 24])
def test_blocks_of_cosines_give_what_all_at_once_give(tmp_path: Path, at_once: int) -> None:
    W_dec, told = sae().W_dec, StopAfter(0)
    whole = measure_neighbours(tmp_path / "whole", W_dec, no_progress)
    blocks = measure_neighbours(tmp_path / "blocks", W_dec, told, cosines_at_once=at_once)
    assert len(told.doing) == -(-24 // max(1, at_once // 24))
    assert blocks.indices.tolist() == whole.indices.tolist()
    np.testing.assert_allclose(blocks.cosines, whole.cosines, atol=1e-6)


def test_a_dictionary_of_few_features_has_as_many_neighbours_as_there_are(tmp_path: Path) -> None:
    assert measure_neighbours(tmp_path / "3", torch.eye(3), no_progress).indices.shape == (3, 2)
    assert measure_neighbours(tmp_path / "1", torch.eye(1), no_progress).indices.shape == (1, 0)
