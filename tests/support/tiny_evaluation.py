"""Small SAEs, texts and runs for what evaluates them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tests.support.tiny_training import LAYER, reader, texts
from torch import nn

from saeclamp_saes.evaluation.eval_data import EvalData
from saeclamp_saes.evaluation.evaluate import EvaluatedSAE, NamedSAE, evaluate, sites_of
from saeclamp_saes.lm.documents import data_files
from saeclamp_saes.lm.harvest import ActivationReader
from saeclamp_saes.sae import SAE
from saeclamp_saes.sites import Site

HOME = Site("resid_post", LAYER)


WIDTH = 16


D_SAE = 40


def sae_at(site: Site = HOME, seed: int = 0, **changes: Any) -> SAE:
    """Features from dense to rare, and three that are never active."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(D_SAE, WIDTH, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    threshold = torch.linspace(0.0, 3.5, D_SAE)
    threshold[-3:] = math.inf
    sae = SAE(
        reads=(site,),
        writes=(site,),
        W_enc=directions.T.contiguous(),
        b_enc=0.1 * torch.randn(D_SAE, generator=generator),
        W_dec=0.2 * directions,
        b_dec=0.1 * torch.randn(WIDTH, generator=generator),
        threshold=threshold,
    )
    return replace(sae, **changes)


def reading(model: nn.Module, *saes: SAE, **options: Any) -> ActivationReader:
    return replace(reader(model), sites=sites_of(saes), **options)


def measured(
    saes: Mapping[str, SAE],
    model: nn.Module,
    source: EvalData,
    *,
    group_tokens: int = 1500,
    verified_tokens: int = 400,
    **options: Any,
) -> EvaluatedSAE:
    """Cross-entropies on few tokens, because they take longest, and groups as many times smaller as the texts are."""
    read = reading(model, *saes.values(), group_tokens=group_tokens)
    named = [NamedSAE(*one) for one in saes.items()]
    return evaluate(named, read, source, verified_tokens=verified_tokens, **options)


def figures(found: EvaluatedSAE) -> list[dict[str, Any]]:
    return [one.to_json() for one in found.measurements]


def plain_texts(folder: Path, num: int) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts(num)))
    return data_files([folder])


class Stopped(Exception):
    """As if the process had been killed."""
