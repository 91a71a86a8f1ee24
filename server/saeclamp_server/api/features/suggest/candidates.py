"""Features that a wish brings to mind: by search among labels, and by what differs in answers that were asked for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from saeclamp.types import FeatureQuery
from saeclamp_server.api.features import FeatureSearch
from saeclamp_server.api.features.contrast import aggregate_acts
from saeclamp_server.api.features.permutation_test import LEVEL, max_t_test
from saeclamp_server.api.features.text_activations import FeatureId, active_features, read_activations
from saeclamp_server.api.model_client import GenerateResult, ModelClient
from saeclamp_server.steering import SteeringContext
from saeclamp_server.threads import run_computation, run_search

NUM_FOUND = 12
"""Features that each way of thinking of them may contribute."""

WISHING = frozenset(
    """
    act always answer be behave express like more only please reply respond say sound speak talk talking tell use write
    writing
    """.split()  # noqa: SIM905
)
"""Words of a wish that say nothing of what is wished for."""


def subject_of(wish: str) -> str:
    """Leave out of a wish the words that only say that it is one: features of the word "talk" are not what is wanted."""
    words = [word for word in wish.split() if word.strip(".,!?;:'\"").lower() not in WISHING]
    return " ".join(words) or wish


async def find_candidates(
    wish: str,
    saes: Sequence[str],
    unsteered: Sequence[GenerateResult],
    prompted: Sequence[GenerateResult],
    model: ModelClient,
    context: SteeringContext,
    search: FeatureSearch,
) -> dict[FeatureId, list[str]]:
    """Find features, with how they were thought of; those that both ways found come first, then by turns."""
    query = FeatureQuery(query=subject_of(wish), sae=saes, limit=NUM_FOUND)
    found = await run_search(search.find, query)
    by_search = [FeatureId(hit.sae, hit.index) for hit in found.data]
    texts = [answer.text for answer in (*prompted, *unsteered) if answer.text.strip()]
    num = sum(bool(answer.text.strip()) for answer in prompted)
    read_texts = await read_activations(
        model, context, [(await model.from_text(text, "wish"), "wish") for text in texts], saes=saes
    )

    def summed_up() -> tuple[list[FeatureId], NDArray[np.float64]]:
        active = [*active_features(read_texts)]
        return active, np.array([aggregate_acts(text, active, "mean", False) for text in read_texts])

    features, values = await run_computation(summed_up)
    by_contrast: list[FeatureId] = []
    if 0 < num < len(texts) and features:
        judged = await run_computation(max_t_test, values[:num], values[num:])
        order = np.lexsort((-judged.statistic, judged.p))
        by_contrast = [features[n] for n in order if judged.p[n] <= LEVEL and judged.statistic[n] > 0][:NUM_FOUND]
    ways = {"search": by_search, "contrast": by_contrast}
    ranks = {
        feature: [(way.index(feature), name) for name, way in ways.items() if feature in way]
        for feature in (*by_search, *by_contrast)
    }
    order_of = sorted(ranks, key=lambda feature: (-len(ranks[feature]), min(rank for rank, _ in ranks[feature])))
    return {feature: [name for _, name in ranks[feature]] for feature in order_of}
