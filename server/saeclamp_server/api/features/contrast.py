"""Contrast of two sets of texts: the features that tell them apart, and how surely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from saeclamp.types import Aggregate, Contrast, Contrasted, ContrastedFeature, ContrastExample
from saeclamp_saes.concurrency import gather_first_error
from saeclamp_server.api.features import FeatureSearch
from saeclamp_server.api.features.activation_table import PairCount, TextRow, TextTable
from saeclamp_server.api.features.permutation_test import (
    LEVEL,
    NUM_PERMUTATIONS,
    MaxTResult,
    MaxTTest,
    cliffs_delta,
    num_columns,
    steadiness,
)
from saeclamp_server.api.features.text_activations import (
    FeatureId,
    TextActivations,
    feature_of,
    read_text_activations,
    sum_activations,
)
from saeclamp_server.api.model_client import ModelClient, Prompt
from saeclamp_server.api.progress import ProgressCounter
from saeclamp_server.errors import InvalidRequestError
from saeclamp_server.steering import SteeringContext, check_sae_names
from saeclamp_server.threads import run_computation

NUM_EXAMPLES = 3
MAX_TOKENS = 1 << 20
"""Tokens of all texts together."""

Item = str | Sequence[Mapping[str, Any]]
"""A text or a conversation."""


class _Text(NamedTuple):
    row: TextRow
    has_counted: bool
    """True if any of its tokens counts."""
    is_cut: bool


async def contrast(
    request: Contrast, model: ModelClient, context: SteeringContext, search: FeatureSearch, counter: ProgressCounter
) -> Contrasted:
    """Answer `POST /v1/features/contrast`. Raises RequestError."""
    saes = check_sae_names(request.saes, context, "saes")
    prompts = await _prompts(request, model)
    counter.begin("reading texts", len(prompts))
    texts = await _read(request, prompts, saes, model, context)
    table = await run_computation(TextTable, [text.row for text in texts])
    judged = await _judged(table, len(request.positive), request.seed, counter)
    order = np.lexsort((-np.abs(judged.statistic), judged.p))[: request.limit]
    found = await run_computation(
        lambda: tuple(_found(int(n), table, judged, prompts, saes, request, model, context, search) for n in order)
    )
    return Contrasted(
        data=found,
        num_features=len(table.keys),
        num_significant=int((judged.p <= LEVEL).sum()),
        test=_test(judged),
        warnings=tuple(_warnings(judged, texts, request)),
    )


async def _prompts(request: Contrast, model: ModelClient) -> list[tuple[Prompt, str]]:
    prompts: list[tuple[Prompt, str]] = []
    num_tokens = 0
    for name, items in (("positive", request.positive), ("negative", request.negative)):
        for number, item in enumerate(items):
            path = f"{name}[{number}]"
            prompts.append((await _prompt(item, model, path), path))
            num_tokens += len(prompts[-1][0].ids)
            if num_tokens > MAX_TOKENS:
                raise InvalidRequestError(
                    f"{path}: the texts up to here are {num_tokens} tokens; at most {MAX_TOKENS} can be contrasted.",
                    path,
                )
    return prompts


async def _read(
    request: Contrast,
    prompts: Sequence[tuple[Prompt, str]],
    saes: Sequence[str],
    model: ModelClient,
    context: SteeringContext,
) -> list[_Text]:
    """Read texts, and keep of each what it counts for."""
    count = PairCount()

    async def one(prompt: Prompt, path: str) -> _Text:
        text = await read_text_activations(model, context, prompt, path, saes=saes)
        row = TextRow.from_sums(
            await run_computation(sum_activations, text, request.include_template), request.aggregate
        )
        count.add(row, path)
        return _Text(row, bool(text.counted(request.include_template).any()), text.is_cut)

    return await gather_first_error(one(prompt, path) for prompt, path in prompts)


async def _judged(table: TextTable, num: int, seed: int, counter: ProgressCounter) -> MaxTResult:
    total = len(table.rows)
    step = num_columns(total)
    parts = [table.keys[start : start + step] for start in range(0, len(table.keys), step)]
    counter.begin("dealing the texts to two sets anew", 2 * len(parts))
    spread = []  # of all features, before any is judged: `steadiness` is their median
    for keys in parts:
        spread.append(await run_computation(lambda keys: table.columns(keys).std(axis=0), keys))
        counter.step()
    steady = steadiness(np.concatenate(spread) if spread else np.zeros(0))
    judgement = await run_computation(MaxTTest, num, total, steady, seed)
    for keys in parts:
        await run_computation(lambda keys: judgement.add(table.columns(keys)), keys)
        counter.step()
    return judgement.result()


def _found(
    number: int,
    table: TextTable,
    judged: MaxTResult,
    prompts: Sequence[tuple[Prompt, str]],
    saes: Sequence[str],
    request: Contrast,
    model: ModelClient,
    context: SteeringContext,
    search: FeatureSearch,
) -> ContrastedFeature:
    key, num = int(table.keys[number]), len(request.positive)
    feature = feature_of(key, saes)
    values = table.columns(table.keys[number : number + 1])
    positive, negative = values[:num], values[num:]
    larger = range(num) if judged.statistic[number] > 0 else range(num, len(prompts))
    return ContrastedFeature(
        feature=str(feature),
        sae=feature.sae,
        index=feature.number,
        name=context.name_of(*feature),
        label=search.label(*feature),
        description=search.description(*feature),
        output_score=search.output_score(*feature),
        positive=float(positive.mean()),
        negative=float(negative.mean()),
        difference=float(positive.mean() - negative.mean()),
        effect=float(cliffs_delta(positive, negative)[0]),
        p=float(judged.p[number]),
        significant=bool(judged.p[number] <= LEVEL),
        examples=_examples(key, larger, table, [prompt for prompt, _ in prompts], model),
    )


async def _prompt(item: Item, model: ModelClient, path: str) -> Prompt:
    """Tokenise a text or a conversation. Raises RequestError, which names `path`."""
    return await (model.from_text(item, path) if isinstance(item, str) else model.from_messages(item, path))


def aggregate_acts(
    text: TextActivations, features: Sequence[FeatureId], aggregate: Aggregate, include_template: bool
) -> NDArray[np.float64]:
    """Sum up what features do in a text: (num_features,)."""
    keys = np.array([text.key(feature) for feature in features], np.int64)
    order = np.argsort(keys)
    values = np.zeros(len(features))
    values[order] = TextTable([TextRow.from_sums(sum_activations(text, include_template), aggregate)]).columns(
        keys[order]
    )[0]
    return values


def _examples(
    key: int, numbers: range, table: TextTable, prompts: Sequence[Prompt], model: ModelClient
) -> tuple[ContrastExample, ...]:
    """numbers: texts of the set in which the feature is larger"""
    peaks = [(text, *peak) for text, number in enumerate(numbers) if (peak := table.peak(number, key)) is not None]
    peaks.sort(key=lambda peak: -abs(peak[1]))
    return tuple(
        ContrastExample(
            text=text,
            position=position,
            token=model.token_texts([prompts[numbers[text]].ids[position]])[0],
            act=act,
        )
        for text, act, position in peaks[:NUM_EXAMPLES]
    )


def _test(judged: MaxTResult) -> str:
    deals = "every deal of the texts" if judged.is_exact else f"{NUM_PERMUTATIONS} random deals of the texts"
    return f"maximum over all features, {deals} to two sets; p corrected for the number of features"


def _warnings(judged: MaxTResult, texts: Sequence[_Text], request: Contrast) -> list[str]:
    warnings = []
    if judged.least_p > LEVEL:
        warnings.append(
            f"{len(request.positive)} and {len(request.negative)} texts are too few to tell: however far they differ, p "
            f"cannot be less than {judged.least_p:.2g}. Give more texts."
        )
    empty = sum(not text.has_counted for text in texts)
    if empty:
        warnings.append(f"{empty} of the texts have no token that counts, and count as zero.")
    if any(text.is_cut for text in texts):
        warnings.append("At some tokens more features are active than were read; the weakest were left out.")
    return warnings
