"""
Explanations of features in prose, by a language model, each with a score on examples that the model was not shown.

Detection: the model reads an explanation that it gave, and texts in random order, in some of which the feature is active and
in the others not. The score is its balanced accuracy in telling them apart.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from saeclamp_saes.concurrency import gather_first_error
from saeclamp_saes.errors import LabelError
from saeclamp_saes.labelling.explain import prompts as prompts
from saeclamp_saes.labelling.explain.client import ExplainClient, ExplainEndpoint, NoAnswerError, TokenUsage
from saeclamp_saes.labelling.explain.examples import ExplainMaterial, select_material
from saeclamp_saes.labelling.explain.journal import Explained, Journal
from saeclamp_saes.labelling.table import Explanation, Feature, LabelTable
from saeclamp_saes.progress import ProgressCallback, no_progress

DEFAULTS: dict[str, Any] = {"temperature": 0.0, "max_tokens": 1000}
"""Fields of every request, unless the user sets others."""
CHOICE = 2
"""Version of the way in which texts are chosen from the labels, since explanations and scores depend on it."""
ASKED_AT_ONCE = 10
"""Texts in one request of detection."""
FAILED_IN_A_ROW = 10
"""Failed features in a row after which the run ends, because the endpoint is at fault and not the features."""


@dataclass(frozen=True)
class ExplainRequest:
    """The features to explain, and the endpoint that explains them."""

    labels: Path
    """File of labels, which explanations are written into."""
    endpoint: ExplainEndpoint
    features: Sequence[int] | None = None
    """Indices; None: all features that are ever active, the highest output score first."""
    most: int | None = None
    """Number of them to explain, at most."""
    concurrency: int = 8
    """Features at a time."""
    replace: bool = False
    """True to explain features too that have an explanation, of another run or from elsewhere."""


@dataclass
class ExplainResult:
    """Result of a run; JSON-able through `dataclasses.asdict`."""

    explained: int = 0
    """Features that this run explained."""
    before: int = 0
    """Features that an earlier run of the same kind explained."""
    kept: int = 0
    """Features that keep another explanation."""
    too_few_examples: list[int] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    """Reason of the failure, by feature; the same command tries them again."""
    mean_score: float | None = None
    """Mean score of all features asked for that have one."""
    usage: TokenUsage = field(default_factory=TokenUsage)


def explain(request: ExplainRequest, report: ProgressCallback = no_progress) -> ExplainResult:
    """
    Explain and score features, and write explanations into the labels; stopped at any time, it can be resumed.

    Raises LabelError with a sentence: no labels, no such feature, an endpoint that does not answer. Explanations until then
    are in the labels.
    """
    labels = LabelTable.read(request.labels)
    wanted = _wanted(labels, request)
    outcome = ExplainResult()
    source = f"llm:{request.endpoint.model}"
    with Journal.open(request.labels, _run(labels, request.endpoint)) as journal:
        todo = list(_todo(labels, wanted, journal, source, request.replace, outcome))
        try:
            asyncio.run(_explain_all(labels, request, todo, journal, source, outcome, report))
        finally:
            _write(request, labels, journal, source)
        scores = [journal.finished[index].score for index in wanted if index in journal.finished]
    outcome.mean_score = sum(scores) / len(scores) if scores else None
    return outcome


def _wanted(labels: LabelTable, request: ExplainRequest) -> list[int]:
    if request.features is not None:
        wanted = list(dict.fromkeys(request.features))
        if outside := [index for index in wanted if not 0 <= index < len(labels)]:
            raise LabelError(f"There is no feature {outside[0]}: the labels are of features 0 to {len(labels) - 1}.")
    else:
        scores, times = (labels.table[name].to_pylist() for name in ("output_score", "num_active"))
        ranks = [(-(scores[index] or 0.0), index) for index in range(len(labels)) if times[index]]
        wanted = [index for _, index in sorted(ranks)]
    return wanted[: request.most]


def _run(labels: LabelTable, endpoint: ExplainEndpoint) -> str:
    """Hash all that an explanation depends on."""
    depends_on = [
        labels.info.decoder_sha256,
        labels.info.date,
        CHOICE,
        endpoint.model,
        endpoint.structured,
        {**DEFAULTS, **endpoint.body},
        prompts.EXPLAIN,
        prompts.DETECT,
    ]
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:16]


def _todo(
    labels: LabelTable, wanted: Sequence[int], journal: Journal, source: str, replace: bool, outcome: ExplainResult
) -> Iterator[int]:
    explanations = labels.explanations()
    for index in wanted:
        held = explanations.get(index)
        if index in journal.finished and (held is None or held.source == source or replace):
            outcome.before += 1
        elif held and not replace:
            outcome.kept += 1
        else:
            yield index


async def _explain_all(
    labels: LabelTable,
    request: ExplainRequest,
    todo: Sequence[int],
    journal: Journal,
    source: str,
    outcome: ExplainResult,
    report: ProgressCallback,
) -> None:
    left, failed_in_a_row = iter(todo), 0

    async def work(asker: ExplainClient) -> None:
        nonlocal failed_in_a_row
        for index in left:  # shared: each worker takes the next
            feature = labels[index]
            material = select_material(feature)
            try:
                if material is None:
                    outcome.too_few_examples.append(index)
                else:
                    journal.keep(await _explained(labels, feature, material, asker, source))
                    outcome.explained += 1
                    failed_in_a_row = 0
            except NoAnswerError as exc:
                outcome.failed[index] = str(exc)
                failed_in_a_row += 1
                if failed_in_a_row == FAILED_IN_A_ROW:
                    raise LabelError(f"{failed_in_a_row} features in a row were not explained: {exc}.") from None
            report("explaining", outcome.explained + len(outcome.failed) + len(outcome.too_few_examples), len(todo), {})

    limits = httpx.Limits(max_connections=request.concurrency)
    # no timeout here, because the asker has one for the whole of an answer
    async with httpx.AsyncClient(timeout=None, limits=limits) as http:
        asker = ExplainClient(replace(request.endpoint, body={**DEFAULTS, **request.endpoint.body}), http)
        outcome.usage = asker.usage
        await gather_first_error(work(asker) for _ in range(request.concurrency))


async def _explained(
    labels: LabelTable, feature: Feature, material: ExplainMaterial, asker: ExplainClient, source: str
) -> Explained:
    explanation = await asker.ask(
        prompts.EXPLAIN,
        prompts.explain_prompt(feature, material),
        prompts.EXPLANATION,
        prompts.explanation_in,
    )
    asked = [(example, True) for example in material.activating] + [(example, False) for example in material.others]
    # seeded by the feature, so that a repeated run asks the same
    random.Random(f"{labels.info.decoder_sha256} {feature.index} order").shuffle(asked)
    found = {True: 0, False: 0}
    for first in range(0, len(asked), ASKED_AT_ONCE):
        part = asked[first : first + ASKED_AT_ONCE]
        matches = await asker.ask(
            prompts.DETECT,
            prompts.detect_prompt(explanation, [example for example, _ in part]),
            prompts.MATCHES,
            partial(prompts.matches_in, num=len(part)),
        )
        for number, (_, is_active) in enumerate(part, 1):
            found[is_active] += number in matches
    num_activating, num_others = len(material.activating), len(material.others)
    return Explained(
        index=feature.index,
        explanation=explanation,
        source=source,
        score=(found[True] / num_activating + 1 - found[False] / num_others) / 2,
        activating=num_activating,
        activating_found=found[True],
        others=num_others,
        others_found=found[False],
        num_shown=len(material.shown),
    )


def _write(request: ExplainRequest, before: LabelTable, journal: Journal, source: str) -> None:
    """Write the journal's explanations into the labels as they are now. Those by others stay unless `replace` is set."""
    labels = LabelTable.read(request.labels)
    if labels.info != before.info:
        raise LabelError(f"{request.labels} was made anew meanwhile; the explanations are in the journal beside it.")
    held = labels.explanations()
    new = {
        # as the file holds it, so that what is in it already is not written again
        index: Explanation(done.explanation, source, float(np.float32(done.score)))
        for index, done in journal.finished.items()
        if index not in held or held[index].source == source or request.replace
    }
    if any(held.get(index) != explanation for index, explanation in new.items()):
        labels.with_explanations(new).write(request.labels)
