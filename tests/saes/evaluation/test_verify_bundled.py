"""The real thing: the packaged model, its bundled SAE, and copies of that SAE with the mistakes that files have."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.support.bundled import LAYER

from saeclamp_saes import SAE, Site, read_sae
from saeclamp_saes.cli import verify as command
from saeclamp_saes.evaluation.report import Verification
from saeclamp_saes.evaluation.verify import verify
from saeclamp_saes.library.reference import BUNDLED
from saeclamp_saes.lm.load import load_model
from saeclamp_saes.lm.text import read_text, tokenize_sequences
from saeclamp_server.packaged_model import prepared_model

TOKENS = 512
TOKENS_OF_A_COPY = 128
Verify = Callable[[SAE, int], Verification]


@pytest.fixture(scope="module")
def model_folder() -> Path:
    return prepared_model()


@pytest.fixture(scope="module")
def measure(model_folder: Path) -> Verify:
    model, tokenizer = load_model(str(model_folder), "cpu")
    text = read_text(None)

    def run(sae: SAE, num_tokens: int) -> Verification:
        return verify(sae, model, tokenize_sequences(text, tokenizer, num_tokens), tokenizer.all_special_ids)

    return run


@pytest.fixture(scope="module")
def sae() -> SAE:
    return read_sae(BUNDLED["bundled"])


@pytest.fixture(scope="module")
def result(measure: Verify, sae: SAE) -> Verification:
    """What is measured of the SAE as it is."""
    return measure(sae, TOKENS)


def test_the_bundled_sae_fits(result: Verification) -> None:
    print(json.dumps(result.to_json(), indent=1))  # with `pytest -s`
    loss = result.cross_entropy
    assert result.verdict == "ok"
    assert result.num_tokens == TOKENS - TOKENS // 256
    assert 0.65 < result.explained_variance < 0.85  # 0.78 on 60,000 held-out tokens
    assert result.pca_explained_variance < result.explained_variance
    assert 26 < result.l0_mean < 40  # 32.1 on those
    assert result.l0_p5 < result.l0_mean < result.l0_p95
    assert result.dead_share < 0.7  # of so few tokens; 0.03 on those
    assert result.dense_share < 0.05
    assert loss.clean < loss.spliced < loss.mean < loss.zero
    assert loss.recovered_against_zero is not None
    assert loss.recovered_against_mean is not None
    assert 0.9 < loss.recovered_against_mean < loss.recovered_against_zero < 1
    assert result.calibrated_threshold is None


def test_without_its_thresholds_it_is_refused_although_it_explains_more(
    result: Verification, measure: Verify, sae: SAE
) -> None:
    """As if its configuration said "standard": seven times as many features are active."""
    wrong = measure(replace(sae, threshold=torch.zeros_like(sae.threshold)), TOKENS)
    assert wrong.explained_variance > result.explained_variance
    assert wrong.l0_mean > 6 * result.l0_mean
    assert wrong.verdict.startswith("It fits better as TopK with k = ")
    assert "active features, against" in wrong.verdict
    assert "use ?activation=topk&k=" in wrong.verdict
    assert [reading.l0 for reading in wrong.readings if reading.name == "as TopK with k = 32"] == [32.0]


def shifted(layer: int) -> Callable[[SAE], SAE]:
    return lambda sae: replace(sae, reads=(Site("resid_post", layer),), writes=(Site("resid_post", layer),))


def transposed(sae: SAE) -> SAE:
    """Each matrix read as the other one, and b_dec folded with what is taken for the encoder."""
    b_enc = sae.b_enc + sae.b_dec @ sae.W_enc - sae.b_dec @ sae.W_dec.T
    return replace(sae, W_enc=sae.W_dec.T, W_dec=sae.W_enc.T, b_enc=b_enc)


def unnormalised(factor: float) -> Callable[[SAE], SAE]:
    """Weights that expect inputs times `factor`, in a file that does not say so."""
    return lambda sae: replace(sae, W_enc=sae.W_enc / factor, W_dec=sae.W_dec * factor, b_dec=sae.b_dec * factor)


@pytest.mark.parametrize(
    ("copy", "reading", "hint"),
    [
        pytest.param(
            shifted(LAYER - 1), f"at resid_post {LAYER} ", f"use ?site=resid_post.{LAYER}.", id="a-layer-early"
        ),
        pytest.param(
            shifted(LAYER + 1), f"at resid_post {LAYER} ", f"use ?site=resid_post.{LAYER}.", id="a-layer-late"
        ),
        pytest.param(transposed, "with encoder and decoder exchanged", "?format=NAME.", id="transposed"),
        pytest.param(unnormalised(0.064), "with the input times 0.06", "use ?input_scale=0.06", id="unnormalised"),
    ],
)
def test_a_copy_with_a_mistake_is_refused(
    copy: Callable[[SAE], SAE], reading: str, hint: str, measure: Verify, sae: SAE
) -> None:
    result = measure(copy(sae), TOKENS_OF_A_COPY)
    print(result.verdict)
    assert not result.fits
    assert f"It fits better {reading}" in result.verdict
    assert hint in result.verdict


def run(*argv: str, resolve_model: Callable[[str], str] = str) -> int:
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers(), resolve_model)
    args = parser.parse_args(["verify", *argv])
    status: int = args.run(args)
    return status


def test_the_command_prints_nothing_but_json(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("bundled", "--model", "packaged", "--tokens", "128", "--device", "cpu", "--json")
    assert run(*argv, resolve_model=lambda name: str(model_folder) if name == "packaged" else name) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["fits"] is True
    assert told["num_tokens"] == 127
    assert told["warnings"] == ["Only 127 tokens were measured; give a longer text for figures that can be relied on."]


def test_the_command_refuses_with_a_table_and_a_sentence(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.txt").write_text(read_text(None)[:700], encoding="utf-8")
    argv = ("bundled?site=resid_post.21", "--model", str(model_folder), "--text", str(tmp_path / "own.txt"))
    assert run(*argv) == 1
    out = capsys.readouterr().out
    assert "resid_post 21" in out
    assert "at resid_post 22" in out.splitlines()[-1]
    assert "explained variance" in out


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        pytest.param(("missing", "--model", "m"), "missing", id="no-such-sae"),
        pytest.param(
            ("bundled", "--model", "/no/such/model"), "The model '/no/such/model' cannot be loaded", id="model"
        ),
        pytest.param(("bundled", "--model", "m", "--text", "/no/text"), "/no/text cannot be read", id="text"),
        pytest.param(("bundled?k=3", "--model", "m"), "k", id="option"),
    ],
)
def test_bad_input_is_one_sentence_on_stderr(
    argv: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("saeclamp: ")
    assert sentence in err


def test_a_number_of_tokens_must_be_positive(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run("bundled", "--model", "m", "--tokens", "-3")
    assert "not a positive whole number" in capsys.readouterr().err


def test_the_model_computes_in_float32_on_a_cpu(model_folder: Path) -> None:
    model, _ = load_model(str(model_folder), "cpu")
    assert next(model.parameters()).dtype is torch.float32
    assert next(load_model(str(model_folder), "cpu", "bfloat16")[0].parameters()).dtype is torch.bfloat16
