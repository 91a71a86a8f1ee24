"""Features that are taken away, from a model whose logprob is a known function of how much of each is there."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from saeclamp.types import Scale, Steering
from saeclamp_server.api.features import attribution_effects
from saeclamp_server.api.features.attribution_effects import (
    AttributionTarget,
    JointEffects,
    SingleEffects,
    take_away_jointly,
    take_away_singly,
)
from saeclamp_server.api.features.text_activations import FeatureId
from saeclamp_server.api.model_client import GenerateRequest, Prompt
from saeclamp_server.api.progress import ProgressCounter

TRIED = [FeatureId("sae", number) for number in range(3)]
WEIGHTS = (0.5, -4.0, 1.0)
INTERACTION = 0.25
"""Added to the logprob where the first and the last feature are there together."""
TARGET, OTHER = 7, 8


class KnownModel:
    async def run(self, request: GenerateRequest, path: str) -> Any:
        shares = [1.0, 1.0, 1.0]
        edits = request.steering.interventions if isinstance(request.steering, Steering) else ()
        for edit in edits:
            assert edit.tokens == "prompt"
            shares[int(str(edit.feature).split("/")[1])] = edit.factor if isinstance(edit, Scale) else 0.0
        logprob = sum(map(lambda share, weight: share * weight, shares, WEIGHTS)) + INTERACTION * shares[0] * shares[2]
        return SimpleNamespace(
            logprobs=[{token: logprob if token == TARGET else -1.0 for token in request.logprobs_of}]
        )


def effects(
    num_pairs: int, tried: list[FeatureId], monkeypatch: pytest.MonkeyPatch, against: int | None = None
) -> tuple[SingleEffects, JointEffects]:
    monkeypatch.setattr(attribution_effects, "resolve", lambda steering, served: steering)
    question, model, served = (
        AttributionTarget(Prompt((1, 2)), "text", TARGET, against),
        KnownModel(),
        SimpleNamespace(),
    )

    async def both() -> tuple[SingleEffects, JointEffects]:
        alone = await take_away_singly(tried, question, model, served)  # type: ignore[arg-type]
        counter = ProgressCounter()
        joint = await take_away_jointly(tried, alone, num_pairs, question, model, served, counter)  # type: ignore[arg-type]
        return alone, joint

    return asyncio.run(both())


@pytest.mark.parametrize(("against", "base"), [(None, -2.25), (OTHER, -1.25)])
def test_changes_are_what_the_model_loses(monkeypatch: pytest.MonkeyPatch, against: int | None, base: float) -> None:
    alone, joint = effects(10, TRIED, monkeypatch, against)
    assert alone.base == pytest.approx(base)
    assert alone.changes == pytest.approx([-0.75, 4.0, -1.25])
    assert alone.predicted == pytest.approx([-0.75, 4.0, -1.25])
    assert alone.order == [1, 2, 0]
    assert joint.of_all == pytest.approx(2.25)
    # those of the features that matter most come first, and an interaction is lost once
    assert [*joint.of_pairs] == [(1, 2), (1, 0), (2, 0)]
    assert [*joint.of_pairs.values()] == pytest.approx([2.75, 3.25, -1.75])


def test_so_many_pairs_are_tried_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [*effects(1, TRIED, monkeypatch)[1].of_pairs] == [(1, 2)]
    assert effects(0, TRIED, monkeypatch)[1] == JointEffects({}, pytest.approx(2.25))


def test_nothing_tried_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    alone, joint = effects(5, [], monkeypatch)
    assert (alone.changes, alone.predicted, joint) == ([], [], JointEffects({}, 0.0))
