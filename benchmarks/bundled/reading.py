"""What the scripts here share: records of the corpus, vectors of the packaged model, and which features read what."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from saeclamp_saes import SAE, Site
from saeclamp_saes.lm.documents import Document
from saeclamp_saes.lm.harvest import ActivationReader
from saeclamp_saes.lm.load import load_model
from saeclamp_saes.lm.token_mask import SINK_MULTIPLE
from saeclamp_server.packaged_model import prepared_model

CONTRAST = 3.0
"""Mean activation where the concept is, less this many times that elsewhere, ranks features."""


def records(files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Read {"text" or "messages": ..., "source": ...}, a line each, of plain or gzipped files."""
    for path in files:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            yield from map(json.loads, file)


def open_reader(sites: Sequence[Site]) -> ActivationReader:
    """Open the packaged model to read the stream at some places."""
    model, tokenizer = load_model(str(prepared_model()), "cpu", "bfloat16")
    return ActivationReader(model, tokenizer, tuple(sites), context=256, batch_tokens=1024)


def vectors(reader: ActivationReader, some: Sequence[Document]) -> torch.Tensor:
    """
    Read texts, without what is far longer than the median anywhere.

    returns: (n, num_sites, width)
    """
    read = torch.cat(reader.vectors([part for document in some for part in reader.parts(document)])).float()
    norms = read.norm(dim=2)
    return read[(norms <= SINK_MULTIPLE * norms.median(dim=0).values).all(dim=1)]


def encoded(sae: SAE, x: torch.Tensor) -> torch.Tensor:
    """
    Encode, in parts.

    x:       (n, width)
    returns: (n, d_sae)
    """
    return torch.cat([sae.encode(part) for part in x.split(4096)])  # type: ignore[no-untyped-call]


def ranked(inside: torch.Tensor, outside: torch.Tensor) -> list[int]:
    """
    Rank features, those that read a concept most first.

    inside, outside: (d_sae,), mean activations
    """
    order: list[int] = (inside - CONTRAST * outside).argsort(descending=True).tolist()
    return order
