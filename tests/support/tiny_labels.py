"""A tiny SAE to label, and what its features do, computed one token at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tests.support.tiny_models import WIDTH
from tests.support.tiny_training import LAYER

from saeclamp_saes import SAE, Site
from saeclamp_saes.labelling.run import LabelSettings
from saeclamp_saes.labelling.table import (
    Example,
    Feature,
)
from saeclamp_saes.lm.documents import data_files, documents
from saeclamp_saes.lm.harvest import ActivationReader

SITE = Site("resid_post", LAYER)
D_SAE, DEAD = 24, 5


def sae(*sites: Site, d_sae: int = D_SAE, seed: int = 0, **options: Any) -> SAE:
    """Features from rare to dense; feature 5 is never active."""
    sites = sites or (SITE,)
    width = WIDTH * len(sites)
    generator = torch.Generator().manual_seed(seed)
    W_enc = torch.randn(d_sae, width, generator=generator).T
    threshold = torch.linspace(0.1, 6.0, d_sae)
    threshold[DEAD] = 1e9
    W_dec = 0.3 * torch.randn(d_sae, width, generator=generator)
    known = {"threshold": threshold, "architecture": "jumprelu", "writes": sites, **options}
    return SAE(
        reads=sites,
        W_enc=W_enc,
        b_enc=0.1 * torch.randn(d_sae, generator=generator),
        W_dec=W_dec,
        b_dec=torch.zeros(width),
        **known,
    )


def settings(out: Path, data: Path, **options: Any) -> LabelSettings:
    return LabelSettings(
        out=out,
        sae_name="mine",
        model_name="tiny",
        model_sha256={"model.safetensors": "0" * 64},
        **{"data": (data,), "tokens": 10**6, **options},
    )


class Token(NamedTuple):
    """A token of the text, and the activations there."""

    id: int
    sequence: int
    position: int
    document: int
    counts: bool
    acts: list[float]


@torch.no_grad()
def tokens_of(reader: ActivationReader, sae: SAE, data: Path, limit: float = float("inf")) -> list[list[Token]]:
    """The obvious way: one sequence after the other through the whole model, without stopping it."""
    found: list[list[Token]] = []
    for number, document in enumerate(documents(data_files([data]))):
        for part in reader.parts(document):
            ids = part.ids.tolist()
            states = reader.model(input_ids=part.ids[None], output_hidden_states=True).hidden_states
            states = torch.stack([states[site.layer + 1][0] for site in sae.reads], dim=1)
            sequence = []
            for position, (token, x) in enumerate(zip(ids, states, strict=True)):
                counts = bool(part.counts[position]) and bool((x.norm(dim=1) <= limit).all())
                acts = sae.encode(x.flatten()).tolist() if counts else [0.0] * sae.d_sae
                sequence.append(Token(token, len(found), position, number, counts, acts))
            found.append(sequence)
    return found


class Stopped(Exception):
    """As if the process had been killed."""


class StopAfter:
    """Stops at the n-th report, of one step or of all, and keeps what was told."""

    def __init__(self, num: int, step: str = "") -> None:
        self.left = num
        self.step = step
        self.doing: list[str] = []

    def __call__(self, doing: str, done: int, total: int, figures: Mapping[str, float]) -> None:
        self.doing.append(doing)
        self.left -= doing.startswith(self.step)
        if self.left == 0:
            raise Stopped


def replace_point(point: Any) -> Any:
    return SITE._replace(point=point)


def feature(index: int, **values: Any) -> Feature:
    known: dict[str, Any] = dict.fromkeys((field.name for field in fields(Feature)), None)
    example = Example(9, (" a", "\ufffd", '"\n'), (0.0, 1.5, 0.25), 1, 1.5, 2**40)
    known |= {
        "index": index,
        "density": 0.125,
        "num_active": 3,
        "kind": "none",
        "neighbours": (),
        "examples": (example,),
        "inactive": (Example(-1, (" b", "."), (0.0, 0.0), 1, 0.0, 3),),
    }
    return Feature(**{**known, **values})
