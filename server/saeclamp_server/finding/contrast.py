"""Which features tell two sets of texts apart, and how surely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saeclamp.types import Aggregate, Contrast, Contrasted, ContrastedFeature, ContrastExample
from saeclamp_server.features import FeatureSearch
from saeclamp_server.finding.reading import Activations, FeatureId, matrix, mentioned, read
from saeclamp_server.finding.significance import LEVEL, NUM_DEALS, Judged, cliffs_delta, judge
from saeclamp_server.model import Model, Prompt
from saeclamp_server.steering import Served, known_saes_named

NUM_EXAMPLES = 3

Item = str | Sequence[Mapping[str, Any]]
"""A text or a conversation."""


async def contrast(request: Contrast, model: Model, served: Served, search: FeatureSearch) -> Contrasted:
    """Answer `POST /v1/features/contrast`. Raises RequestError."""
    saes = known_saes_named(request.saes, served, "saes")
    prompts = [
        (await _prompt(item, model, path), path)
        for name, items in (("positive", request.positive), ("negative", request.negative))
        for item, path in ((item, f"{name}[{number}]") for number, item in enumerate(items))
    ]
    texts = await read(model, served, prompts, saes=saes)
    features = [*mentioned(texts)]
    values = np.array([worth(text, features, request.aggregate, request.include_template) for text in texts])
    num = len(request.positive)
    positive, negative = values[:num], values[num:]
    judged = judge(positive, negative, request.seed)
    effects = cliffs_delta(positive, negative)
    order = np.lexsort((-np.abs(judged.statistic), judged.p))[: request.limit]
    found = tuple(
        ContrastedFeature(
            feature=str(features[n]),
            sae=features[n].sae,
            index=features[n].number,
            name=served.name_of(*features[n]),
            label=search.label(*features[n]),
            description=search.description(*features[n]),
            output_score=search.output_score(*features[n]),
            positive=float(positive[:, n].mean()),
            negative=float(negative[:, n].mean()),
            difference=float(positive[:, n].mean() - negative[:, n].mean()),
            effect=float(effects[n]),
            p=float(judged.p[n]),
            significant=bool(judged.p[n] <= LEVEL),
            examples=_examples(
                features[n], texts[:num] if judged.statistic[n] > 0 else texts[num:], request.include_template, model
            ),
        )
        for n in map(int, order)
    )
    return Contrasted(
        data=found,
        num_features=len(features),
        num_significant=int((judged.p <= LEVEL).sum()),
        test=_test(judged),
        warnings=tuple(_warnings(judged, texts, request)),
    )


async def _prompt(item: Item, model: Model, path: str) -> Prompt:
    """Tokenise a text or a conversation. Raises RequestError, which names `path`."""
    return await (model.of_text(item, path) if isinstance(item, str) else model.of_messages(item, path))


def worth(
    text: Activations, features: Sequence[FeatureId], aggregate: Aggregate, include_template: bool
) -> NDArray[np.float64]:
    """Sum up what features do in a text: (num_features,)."""
    acts = matrix(text, features)[text.counted(include_template)]
    if not len(acts):
        return np.zeros(len(features))
    if aggregate == "frequency":
        return np.asarray((acts != 0).mean(axis=0))
    return np.asarray(acts.max(axis=0) if aggregate == "max" else acts.mean(axis=0))


def _examples(
    feature: FeatureId, texts: Sequence[Activations], include_template: bool, model: Model
) -> tuple[ContrastExample, ...]:
    peaks = []
    for number, text in enumerate(texts):
        acts = matrix(text, [feature])[:, 0] * text.counted(include_template)
        position = int(np.argmax(np.abs(acts)))
        if acts[position]:
            peaks.append((float(acts[position]), number, position))
    peaks.sort(key=lambda peak: -abs(peak[0]))
    return tuple(
        ContrastExample(
            text=number, position=position, token=model.token_texts([texts[number].prompt.ids[position]])[0], act=act
        )
        for act, number, position in peaks[:NUM_EXAMPLES]
    )


def _test(judged: Judged) -> str:
    deals = "every deal of the texts" if judged.is_exact else f"{NUM_DEALS} random deals of the texts"
    return f"maximum over all features, {deals} to two sets; p corrected for the number of features"


def _warnings(judged: Judged, texts: Sequence[Activations], request: Contrast) -> list[str]:
    warnings = []
    if judged.least_p > LEVEL:
        warnings.append(
            f"{len(request.positive)} and {len(request.negative)} texts are too few to tell: however far they differ, p "
            f"cannot be less than {judged.least_p:.2g}. Give more texts."
        )
    empty = sum(not text.counted(request.include_template).any() for text in texts)
    if empty:
        warnings.append(f"{empty} of the texts have no token that counts, and count as zero.")
    if any(text.is_cut for text in texts):
        warnings.append("At some tokens more features are active than were read; the weakest were left out.")
    return warnings
