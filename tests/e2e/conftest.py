"""The packaged model, which most end-to-end tests need."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from saeclamp_server.packaged_model import prepared_model


@pytest.fixture(scope="session")
def model_folder() -> Path:
    return prepared_model()


@pytest.fixture(scope="session")
def tokenizer(model_folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model_folder)
