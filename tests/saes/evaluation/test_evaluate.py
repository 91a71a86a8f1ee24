"""Figures summed over any amount of text are those of a slow loop over its tokens, however it is stopped and started."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.support.tiny_evaluation import (
    D_SAE,
    WIDTH,
    Stopped,
    figures,
    measured,
    plain_texts,
    reading,
    sae_at,
)
from tests.support.tiny_models import make
from tests.support.tiny_training import LAYER, corpus, texts
from torch import Tensor, nn

from saeclamp_saes.errors import SAEError
from saeclamp_saes.evaluation.accumulators import MetricSums
from saeclamp_saes.evaluation.eval_data import EvalData, survey_data
from saeclamp_saes.evaluation.histograms import Histogram
from saeclamp_saes.evaluation.measurement import Measurement
from saeclamp_saes.evaluation.verify import verify
from saeclamp_saes.lm.documents import Document, data_files, documents
from saeclamp_saes.lm.harvest import norm_limits
from saeclamp_saes.sae import SAE, TopK
from saeclamp_saes.sites import Site

SHARE = 0.3


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return make("llama")


class Slow(NamedTuple):
    vectors: list[Tensor]
    """(width,) each"""
    acts: list[list[float]]
    """By token, of each feature"""
    errors: list[float]
    """Squared distance to the reconstruction"""
    num_sinks: int


@torch.no_grad()
def slow(sae: SAE, model: nn.Module, source: EvalData) -> Slow:
    """One sequence after the other through the whole model, and one token after the other through the SAE."""
    read = reading(model, sae)
    limit = float(norm_limits(read, source.files)[0])
    vectors, all_acts, errors, num_sinks, left = [], [], [], 0, source.tokens or 10**9
    for document in documents(source.files):
        if source.held_out is not None and not document.is_held_out(source.held_out):
            continue
        for part in read.parts(document):
            states = model(input_ids=part.ids[None], output_hidden_states=True).hidden_states[LAYER + 1][0]
            for counts, x in zip(part.counts.tolist(), states, strict=True):
                if not counts or not left:
                    continue
                left -= 1
                if x.norm() > limit:
                    num_sinks += 1
                    continue
                pre = (x @ sae.W_enc + sae.b_enc).tolist()
                acts = [a if a > least else 0.0 for a, least in zip(pre, sae.threshold.tolist(), strict=True)]
                out = sae.b_dec.double()
                for feature, act in enumerate(acts):
                    out = out + act * sae.W_dec[feature].double() if act else out
                vectors.append(x)
                all_acts.append(acts)
                errors.append(float((x.double() - out).square().sum()))
    return Slow(vectors, all_acts, errors, num_sinks)


@pytest.mark.parametrize(
    "options",
    [{}, {"held_out": SHARE, "tokens": 1234}],
    ids=["all", "some-held-out"],
)
def test_figures_are_those_of_a_slow_loop(tmp_path: Path, options: dict[str, Any]) -> None:
    """Over several groups of documents, with a token here and there that is a sink."""
    sae, source = sae_at(), EvalData(data_files([corpus(tmp_path, 120)]), **options)
    with torch.no_grad():  # a token whose vector is many times as long
        stretched = make("llama")
        stretched.model.embed_tokens.weight[5] *= 100
    expected = slow(sae, stretched, source)
    (got,) = measured({"one": sae}, stretched, source).measurements

    acts, x = np.array(expected.acts), np.array([vector.tolist() for vector in expected.vectors])
    active = (acts > 0).sum(axis=0)
    l0 = (acts > 0).sum(axis=1)
    assert expected.num_sinks > 5
    assert (got.num_tokens, got.num_sinks) == (len(x), expected.num_sinks)
    assert got.num_tokens + got.num_sinks == options.get("tokens", got.num_tokens + got.num_sinks)
    spread = ((x - x.mean(axis=0)) ** 2).sum()
    assert got.explained_variance == pytest.approx(1 - sum(expected.errors) / spread, abs=1e-5)
    singular = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
    assert got.pca_explained_variance == pytest.approx((singular[: round(l0.mean())] ** 2).sum() / spread, abs=1e-5)
    assert got.l0_mean == pytest.approx(l0.mean())
    assert (got.l0_p5, got.l0_p95) == (np.percentile(l0, 5), np.percentile(l0, 95))
    assert got.dead_share == (active == 0).mean()

    density = active[active > 0] / len(x)
    assert got.densities.num_never == (active == 0).sum() >= 3
    assert got.densities.median == pytest.approx(np.median(density))
    assert 0 < got.densities.over_10_percent_share == (active > 0.1 * len(x)).mean()
    assert got.densities.over_10_percent_share < got.densities.over_1_percent_share == (active > 0.01 * len(x)).mean()
    edges = got.densities.histogram.edges
    assert list(got.densities.histogram.counts) == np.histogram(density, edges)[0].tolist()
    assert np.diff(np.log10(edges)) == pytest.approx(0.1)
    assert sum(got.densities.histogram.counts) == D_SAE - got.densities.num_never

    positive = np.sort(acts[acts > 0])
    assert got.activations.num == len(positive) == sum(got.activations.histogram.counts)
    assert got.activations.mean == pytest.approx(positive.mean(), rel=1e-5)
    assert got.activations.largest == pytest.approx(positive[-1], rel=1e-5)
    for percent, value in got.activations.percentiles.items():
        assert value == pytest.approx(np.percentile(positive, float(percent)), rel=0.048)
    expected_counts = np.histogram(positive, got.activations.histogram.edges)[0]
    # an activation that lies on an edge may be rounded to either side
    assert np.abs(np.array(got.activations.histogram.counts) - expected_counts).sum() <= 4
    assert json.loads(json.dumps(got.to_json()))["densities"]["histogram"]["counts"] == list(
        got.densities.histogram.counts
    )


def test_on_little_text_the_figures_are_those_of_verify(model: nn.Module, tmp_path: Path) -> None:
    sae, source = sae_at(), EvalData(plain_texts(tmp_path, 60))
    read = reading(model, sae)
    sequences = [part.ids for document in documents(source.files) for part in read.parts(document)]
    expected = verify(sae, model, sequences, read.tokenizer.all_special_ids)
    (got,) = measured({"one": sae}, model, source, verified_tokens=10**6).measurements
    assert got.verification == expected
    for name in ("num_tokens", "num_sinks", "l0_mean", "l0_p5", "l0_p95", "dead_share"):
        assert getattr(got, name) == pytest.approx(getattr(expected, name)), name
    for name in ("explained_variance", "pca_explained_variance"):
        assert getattr(got, name) == pytest.approx(getattr(expected, name), abs=1e-5), name
    assert got.densities.over_10_percent_share == expected.dense_share


def test_held_out_documents_are_those_that_training_leaves(model: nn.Module, tmp_path: Path) -> None:
    whole = plain_texts(tmp_path / "whole", 80)
    left = [text for text in texts(80) if Document(text, None).is_held_out(SHARE)]
    assert 5 < len(left) < 50
    (tmp_path / "left.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in left))
    found = measured({"one": sae_at()}, model, EvalData(whole, SHARE))
    assert found.survey.num_documents == len(left)
    assert figures(found) == figures(measured({"one": sae_at()}, model, EvalData([tmp_path / "left.jsonl"])))


def test_an_sae_beside_others_has_the_figures_that_it_has_alone(model: nn.Module, tmp_path: Path) -> None:
    source = EvalData(plain_texts(tmp_path, 60))
    saes = {"a": sae_at(), "b": sae_at(Site("resid_post", 0), seed=1), "c": sae_at(seed=2)}
    together = figures(measured(saes, model, source))
    alone = [figures(measured({name: sae}, model, source))[0] for name, sae in saes.items()]
    assert together == alone
    assert len({one["l0_mean"] for one in together}) == 3


def test_stopped_again_and_again_it_goes_on_and_comes_to_the_same(model: nn.Module, tmp_path: Path) -> None:
    source, state = EvalData(plain_texts(tmp_path / "data", 100)), tmp_path / "kept" / "state.safetensors"
    saes = {"a": sae_at(), "b": sae_at(seed=2)}
    expected = figures(measured(saes, model, source))
    dones: list[int] = []

    def stop(doing: str, done: int, total: int, figures: Mapping[str, float]) -> None:
        if doing != "measuring" or done == total or done in dones or not state.exists():
            return
        if int(load_file(state)["num_done"]) == done:  # a group of documents was kept just now
            dones.append(done)
            raise Stopped

    for _ in range(100):
        try:
            got = measured(saes, model, source, report=stop, state=state, save_seconds=0.0)
            break
        except Stopped:
            assert state.exists()
    assert len(dones) >= 2
    assert dones == sorted(dones)
    assert figures(got) == expected
    assert list(state.parent.iterdir()) == []


def test_sums_that_cannot_be_kept_are_a_sentence(model: nn.Module, tmp_path: Path) -> None:
    source = EvalData(plain_texts(tmp_path / "data", 20))
    (tmp_path / "file").write_text("")
    with pytest.raises(SAEError, match="What was measured so far cannot be kept in"):
        measured({"one": sae_at()}, model, source, state=tmp_path / "file" / "state", save_seconds=0.0)


def test_two_tokens_are_enough(model: nn.Module, tmp_path: Path) -> None:
    source = EvalData(plain_texts(tmp_path, 5), tokens=2)
    (got,) = measured({"one": sae_at()}, model, source).measurements
    assert (got.num_tokens, got.verification.num_tokens) == (2, 2)
    with pytest.raises(SAEError, match="only one ordinary token to measure, and two or more are needed"):
        measured({"one": sae_at()}, model, replace(source, tokens=1))


def test_sequences_for_the_cross_entropies_are_even_and_few(model: nn.Module, tmp_path: Path) -> None:
    source, read = EvalData(plain_texts(tmp_path, 300)), reading(model, sae_at())
    every = [part.ids.tolist() for parts in source.documents(read) for part in parts]
    found = survey_data(source, read, 1000)
    chosen = [ids.tolist() for ids in found.chosen]
    assert (found.num_parts, found.num_documents) == (len(every), 300)
    assert 500 <= sum(map(len, chosen)) <= 1000
    step = round(len(every) / len(chosen))
    assert chosen == every[::step][: len(chosen)]
    assert len(every) - step * len(chosen) < step  # up to the end
    assert [ids.tolist() for ids in survey_data(source, read, 10**6).chosen] == every


def test_negative_activations_are_counted_apart(model: nn.Module, tmp_path: Path) -> None:
    sae = sae_at(threshold=torch.zeros(D_SAE), top_k=TopK(6, signed=True))
    (got,) = measured({"one": sae}, model, EvalData(plain_texts(tmp_path, 20))).measurements
    assert got.l0_mean == 6.0
    assert got.activations.num_negative > 0
    assert got.activations.num + got.activations.num_negative == 6 * got.num_tokens


def test_an_sae_that_does_nothing_has_figures(model: nn.Module, tmp_path: Path) -> None:
    sae = sae_at(threshold=torch.full((D_SAE,), math.inf))
    (got,) = measured({"one": sae}, model, EvalData(plain_texts(tmp_path, 20))).measurements
    assert (got.dead_share, got.l0_mean, got.densities.num_never) == (1.0, 0.0, D_SAE)
    assert (got.densities.median, got.densities.histogram) == (None, Histogram((), ()))
    assert (got.activations.mean, got.activations.largest, got.activations.percentiles) == (None, None, {})


def test_principal_components_of_very_wide_vectors_are_left_out(model: nn.Module, tmp_path: Path) -> None:
    sae, x = sae_at(), torch.randn(300, WIDTH, generator=torch.Generator().manual_seed(0))
    (got,) = measured({"one": sae}, model, EvalData(plain_texts(tmp_path, 20))).measurements

    def figures_of(widest: int) -> Measurement:
        sums = MetricSums.empty(sae, torch.device("cpu"), widest_gram=widest)
        sums.add(sae, x, x, 0)
        return Measurement.from_sums("one", sae, sums, got.verification)

    narrow, wide = figures_of(WIDTH), figures_of(WIDTH - 1)
    assert narrow.pca_explained_variance is not None
    assert wide == replace(narrow, pca_explained_variance=None)


@pytest.mark.parametrize(
    ("sae", "options", "sentence"),
    [
        pytest.param(sae_at(), {"held_out": 1e-9}, "training with --held-out 1e-09 holds out", id="nothing-held-out"),
        pytest.param(
            sae_at(Site("resid_post", 7)), {}, "There is no layer 7: the model has layers 0 to 2.", id="no-such-layer"
        ),
        pytest.param(
            sae_at(W_enc=torch.zeros(8, D_SAE), W_dec=torch.zeros(D_SAE, 8), b_dec=torch.zeros(8)),
            {},
            "one reads vectors of width 8, and resid_post 1 of this model is 16 wide",
            id="width",
        ),
        pytest.param(
            sae_at(kind="transcoder", W_dec=torch.zeros(D_SAE, 8), b_dec=torch.zeros(8)),
            {},
            "Places of different widths cannot be measured at once: one reads vectors of width 16, and one writes",
            id="two-widths",
        ),
        pytest.param(sae_at(kind="clt_layer"), {}, "it cannot be measured alone", id="a-part"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    sae: SAE, options: dict[str, Any], sentence: str, model: nn.Module, tmp_path: Path
) -> None:
    with pytest.raises(SAEError) as refused:
        measured({"one": sae}, model, EvalData(plain_texts(tmp_path, 20), **options))
    assert sentence in str(refused.value)


def test_bad_data_are_named_before_the_model_runs(tmp_path: Path) -> None:
    """The mistake is in the last of many lines; the model fails if it is run on more than the widths need."""

    class Broken(Exception):
        pass

    def fail_on_many(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].numel() > 2:
            raise Broken

    model = make("llama")
    model.register_forward_pre_hook(fail_on_many, with_kwargs=True)
    (path,) = plain_texts(tmp_path, 50)
    source = EvalData([path])
    with pytest.raises(Broken):
        measured({"one": sae_at()}, model, source)
    path.write_text(path.read_text() + '\n{"txt": 1}')
    with pytest.raises(SAEError, match=r"texts\.jsonl, line 51 is neither"):
        measured({"one": sae_at()}, model, source)
