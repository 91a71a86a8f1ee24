"""One real engine on the packaged model, shared by most end-to-end tests, and the oracle of the same model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.oracles.reference import ReferenceModel, ReferenceSAE
from tests.support.checkpoints import make_sae
from tests.support.serving import Server, free_port, serve
from transformers import PreTrainedTokenizerBase

from saeclamp_saes.library.reference import BUNDLED
from saeclamp_server.packaged_model import PACKAGED_MODEL

SECOND_LAYER = 12
BLOCK = 32
"""Tokens that are cached together: the fewest that a CPU takes, so that prompts of several blocks are short."""


@pytest.fixture(scope="package")
def second_sae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sae(tmp_path_factory.mktemp("saes") / "second", layer=SECOND_LAYER, d_in=576)


@pytest.fixture(scope="package")
def oracle(model_folder: Path, second_sae: Path, tokenizer: PreTrainedTokenizerBase) -> ReferenceModel:
    saes = {"bundled": ReferenceSAE(BUNDLED["bundled"]), "second": ReferenceSAE(second_sae)}
    return ReferenceModel(model_folder, saes, tokenizer.all_special_ids)


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory, second_sae: Path) -> Iterator[Server]:
    flags = ["--sae", "bundled", "--sae", f"second={second_sae}", "--enforce-eager", "--max-model-len", "2048"]
    flags += ["--enable-prompt-tokens-details", "--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    flags += ["--block-size", str(BLOCK)]
    log = tmp_path_factory.mktemp("log") / "server.log"
    trace = log.with_name("trace.jsonl")
    metrics_port = free_port()
    with serve(log, PACKAGED_MODEL, *flags, "--trace", str(trace), "--metrics-port", str(metrics_port)) as running:
        running.trace, running.metrics_port = trace, metrics_port
        yield running
