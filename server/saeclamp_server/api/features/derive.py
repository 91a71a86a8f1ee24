"""A vector out of two sets of texts: what tells their residual streams apart at one site, and how surely."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from saeclamp.types import Derive, DerivedVector, Evidence
from saeclamp_saes import Site
from saeclamp_server.api.model_client import GenerateRequest, ModelClient, Prompt, PromptRecording, generate_all
from saeclamp_server.api.progress import ProgressCounter
from saeclamp_server.errors import InvalidRequestError, ServerFailedError
from saeclamp_server.threads import run_computation
from saeclamp_server.vectors import SteeringVector, VectorRegistry

Floats = NDArray[np.float64]

MAX_TOKENS = 1 << 17
"""Tokens of all texts together."""
CHANCE = 0.7
"""AUC below which a vector hardly tells the sets apart."""
AGREEMENT = 0.5
"""Cosine of the halves' vectors below which they are not much of the same."""


class PromptMeans(Protocol):
    """Fetches the means of the residual stream that the engine has recorded of prompts."""

    async def fetch(self, keys: Sequence[str]) -> dict[str, bytes]:
        """Fetch the mean vectors of runs, (width,) fp64, as far as they are there."""
        ...


async def derive(
    request: Derive, model: ModelClient, vectors: VectorRegistry, streams: PromptMeans, counter: ProgressCounter
) -> DerivedVector:
    """Answer `POST /v1/vectors/derive`. Raises RequestError."""
    site = _site(request.site, vectors)
    if request.method == "pca" and len(request.positive) != len(request.negative):
        raise InvalidRequestError(
            f"negative: 'pca' is of pairs, and there are {len(request.positive)} positive and {len(request.negative)} "
            "negative texts.",
            "negative",
        )
    await vectors.refuse_taken(request.name, site)
    rows = await _read(request, site, model, streams, counter)
    num = len(request.positive)
    numbers, evidence = await run_computation(derived, rows[:num], rows[num:], request.method)
    source = (
        f"{'difference of means' if request.method == 'mean' else 'PCA of differences'} of {num} and {len(rows) - num} "
        f"texts, {'last token' if request.tokens == 'last' else 'all tokens'}; held out: AUC {evidence.auc:.3f}, "
        f"d {evidence.cohens_d:.2f}, cosine of halves {evidence.halves_cosine:.2f}"
    )
    direction = SteeringVector(site, 1, source, torch.from_numpy(numbers).float())
    vector, _ = await vectors.upload(request.name, direction.to_bytes())
    return DerivedVector(vector=vector.to_wire(), evidence=evidence)


def _site(text: str, vectors: VectorRegistry) -> Site:
    try:
        site = Site.parse(text)
    except ValueError as exc:
        raise InvalidRequestError(f"site: {exc}", "site") from exc
    if site not in vectors.places:
        places = ", ".join(map(str, vectors.places)) or "none"
        raise InvalidRequestError(
            f"site: this server has no place for vectors at {site}; there is one at {places}. To add it, serve with "
            f"--vector-site {str(site).replace(' ', '.')}.",
            "site",
        )
    return site


async def _read(
    request: Derive, site: Site, model: ModelClient, streams: PromptMeans, counter: ProgressCounter
) -> Floats:
    """Run all texts, and fetch what was recorded: (num_texts, width)."""
    runs: list[tuple[GenerateRequest, str]] = []
    num_tokens = 0
    for name, items in (("positive", request.positive), ("negative", request.negative)):
        for number, item in enumerate(items):
            path = f"{name}[{number}]"
            prompt: Prompt = await (
                model.from_text(item, path) if isinstance(item, str) else model.from_messages(item, path, answers=True)
            )
            num_tokens += len(prompt.ids)
            if num_tokens > MAX_TOKENS:
                raise InvalidRequestError(
                    f"{path}: the texts up to here are {num_tokens} tokens; at most {MAX_TOKENS} are read.", path
                )
            recording = PromptRecording(uuid.uuid4().hex, str(site), request.tokens)
            runs.append((GenerateRequest(prompt.ids, recording=recording), path))
    counter.begin("reading texts", len(runs))
    await generate_all(model, runs)
    keys = [run.recording.key for run, _ in runs if run.recording is not None]
    found = await streams.fetch(keys)
    if not all(key in found for key in keys):
        raise ServerFailedError
    return np.stack([np.frombuffer(found[key], np.float64) for key in keys])


def derived(positive: Floats, negative: Floats, method: str) -> tuple[Floats, Evidence]:
    """
    Make a vector, and judge it by vectors of each half of the texts.

    positive: (num_texts, width);  negative: (num_others, width)
    Raises RequestError where the sets do not differ.
    """
    numbers = _direction(positive, negative, method)
    halves = [(positive[start::2], negative[start::2]) for start in (0, 1)]
    own = [_direction(*half, method) for half in halves]
    # each half by the vector of the other one, which has not seen its texts
    judged = [_separation(*half, other) for half, other in zip(halves, reversed(own), strict=True)]
    auc, effect = (float(np.mean([one[n] for one in judged])) for n in (0, 1))
    cosine = float(own[0] @ own[1] / (np.linalg.norm(own[0]) * np.linalg.norm(own[1])))
    warnings = []
    if auc < CHANCE:
        warnings.append(f"Texts that it was not made of are hardly told apart (AUC {auc:.2f}; 0.5 is chance).")
    if cosine < AGREEMENT:
        warnings.append(
            f"Two halves of the texts give different vectors (cosine {cosine:.2f}): give more texts, or more alike."
        )
    return numbers, Evidence(
        num_positive=len(positive),
        num_negative=len(negative),
        auc=auc,
        cohens_d=effect,
        halves_cosine=cosine,
        warnings=tuple(warnings),
    )


def _direction(positive: Floats, negative: Floats, method: str) -> Floats:
    means: Floats = positive.mean(axis=0) - negative.mean(axis=0)
    # less of the mean's own norm is rounding; written so that NaN is refused too
    if not np.linalg.norm(means) > 1e-9 * np.linalg.norm(positive.mean(axis=0)):
        raise InvalidRequestError("The two sets do not differ at this site: are they the same texts?", "negative")
    if method == "mean":
        return means
    differences = positive - negative
    centred = differences - differences.mean(axis=0)
    if not np.linalg.norm(centred) > 0:
        return means  # all pairs differ in the very same way
    first: Floats = np.linalg.svd(centred, full_matrices=False)[2][0]
    along = first @ means  # which also turns it the right way
    if not abs(along) > 1e-9 * np.linalg.norm(means):
        raise InvalidRequestError(
            "What the pairs differ in most has nothing of what the sets differ in: use the method 'mean'.", "method"
        )
    return first * along


def _separation(positive: Floats, negative: Floats, direction: Floats) -> tuple[float, float]:
    """Judge how far a vector tells sets apart: AUC, and Cohen's d."""
    unit = direction / np.linalg.norm(direction)
    ours, theirs = positive @ unit, negative @ unit
    wins = np.sign(ours[:, None] - theirs[None, :])
    degrees = len(ours) + len(theirs) - 2
    pooled = np.sqrt((ours.var() * len(ours) + theirs.var() * len(theirs)) / degrees)
    return float((wins.mean() + 1) / 2), float((ours.mean() - theirs.mean()) / max(pooled, 1e-12))
