"""From a wish to what is looked for, to what is tested, and to what is said of it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tests.support.sae_entries import entry, served_saes

from saeclamp.types import Suggest, Suggestion
from saeclamp_saes.library.feature_book import FeatureNote
from saeclamp_server.api.features import FeatureSearch
from saeclamp_server.api.features.suggest.candidates import subject_of
from saeclamp_server.api.features.suggest.screening import ScreenedArm, finalists
from saeclamp_server.api.features.suggest.superiority_test import Superiority
from saeclamp_server.api.features.suggest.trials import TrialArm, control_arms, refusal
from saeclamp_server.api.features.suggest.verdict import Attempt, FeatureCandidate, Finalist, verdict
from saeclamp_server.api.features.text_activations import FeatureId
from saeclamp_server.site_norms import SiteNorms
from saeclamp_server.steering import SteeringContext

SEA, SHIP, SOUP = (FeatureId("s", number) for number in range(3))
MAX_ACT = 10.0
GOOD = Superiority(gain=0.2, control=0.01, p_baseline=0.001, p_controls=0.0001, p=0.004)


@pytest.mark.parametrize(
    ("wish", "subject"),
    [
        ("talk about gardening and flowers", "about gardening and flowers"),
        ("Answer like a pirate!", "a pirate!"),
        ("be more polite", "polite"),
        ("the sea", "the sea"),
        ("talk more", "talk more"),
    ],
)
def test_words_that_only_say_that_something_is_wished_are_left_out(wish: str, subject: str) -> None:
    assert subject_of(wish) == subject


@pytest.fixture
def served() -> SteeringContext:
    notes = [FeatureNote(number, f"f{number}", MAX_ACT) for number in range(40)]
    return SteeringContext(
        served_saes((entry("s", 3, 50, *notes), SiteNorms(100.0, [1.0] * 30 + [4.0] * 20))), max_dose=1.0
    )


def arm(feature: FeatureId, strength: float) -> TrialArm:
    return TrialArm((feature,), (strength,), (strength * MAX_ACT,))


def screened(feature: FeatureId, strength: float, gain: float, perplexity: float | None = 1.5) -> ScreenedArm:
    return ScreenedArm(arm(feature, strength), gain, perplexity, repetition=0.1)


def summary(arms: Sequence[TrialArm]) -> list[tuple[list[int], tuple[float, ...]]]:
    return [([feature.number for feature in one.features], one.strengths) for one in arms]


def test_the_best_features_are_tested_alone_and_in_pairs_of_which_each_gets_less() -> None:
    look = [
        screened(SEA, 1.0, 0.3),
        screened(SEA, 0.75, 0.25),
        screened(SHIP, 1.5, 0.2),
        screened(SOUP, 0.5, 0.1),
        screened(SEA, 0.5, 0.05),
        screened(SEA, 1.5, 0.01),
    ]
    assert summary(finalists(look)) == [
        ([0], (1.0,)),
        ([0], (0.75,)),
        ([1], (1.5,)),
        ([0, 1], (0.7, 1.05)),
        ([0, 2], (0.7, 0.35)),
    ]


@pytest.mark.parametrize(
    ("look", "tested"),
    [
        pytest.param([screened(SEA, 1.0, -0.01)], [], id="no-gain"),
        pytest.param([screened(SEA, 1.0, 0.2, 9.0), screened(SHIP, 1.0, 0.1)], [([1], (1.0,))], id="not-readable"),
        pytest.param([screened(SEA, 1.0, 0.2, None)], [], id="not-known-to-be-readable"),
        pytest.param(
            [screened(SEA, -1.0, 0.2), screened(SEA, 0.5, 0.1), screened(SEA, -0.5, 0.0)],
            [([0], (-1.0,)), ([0], (-0.5,))],
            id="weaker-in-the-same-direction",
        ),
        pytest.param(
            [screened(SEA, 0.0, 0.2), screened(SEA, 0.5, 0.1)], [([0], (0.0,))], id="nothing-is-weaker-than-none"
        ),
    ],
)
def test_what_cannot_pass_is_not_tested(
    look: list[ScreenedArm], tested: list[tuple[list[int], tuple[float, ...]]]
) -> None:
    assert summary(finalists(look)) == tested


def test_controls_are_other_features_that_move_the_stream_as_far(served: SteeringContext) -> None:
    taken = {FeatureId("s", number) for number in range(20)}
    pair = TrialArm((SEA, SHIP), (0.3, 0.4), (3.0, 4.0))
    controls = control_arms(12, [arm(SEA, 1.0), pair], taken, served, seed=1)
    assert [round(one.length(served), 6) for one in controls] == [10.0, 5.0] * 6
    assert {one.values[0] for one in controls if one.features[0].number < 30} == {10.0, 5.0}
    assert {one.values[0] for one in controls if one.features[0].number >= 30} == {2.5, 1.25}
    features = {feature for one in controls for feature in one.features}
    assert len(features) == 12
    assert not features & taken
    assert features != {f for one in control_arms(12, [pair], taken, served, seed=2) for f in one.features}


def test_features_without_a_stored_maximum_are_controls_only_where_others_are_used_up(served: SteeringContext) -> None:
    taken = {FeatureId("s", number) for number in range(35)}
    controls = control_arms(12, [arm(SEA, 1.0)], taken, served, seed=0)
    assert {one.features[0].number for one in controls[:5]} == {35, 36, 37, 38, 39}
    assert {one.features[0].number for one in controls[5:]} < {*range(40, 50)}
    assert control_arms(12, [arm(SEA, 1.0)], {FeatureId("s", number) for number in range(50)}, served, seed=0) == []


def test_a_dose_that_the_server_does_not_allow_is_no_error(served: SteeringContext) -> None:
    assert refusal(arm(SEA, 1.0), served) is None
    said = refusal(arm(SEA, 11.0), served)
    assert said is not None
    assert "s/0" in said
    # a row so short that no value on the wire moves the stream far enough
    assert refusal(TrialArm((SEA,), (1.0,), (2e6,)), served) == "It would be clamped to more than 1e+06."


def verdict_of(served: SteeringContext, *tested: Finalist, finalists: Sequence[TrialArm] | None = None) -> Suggestion:
    ideas = [FeatureCandidate(SEA, ("search",)), FeatureCandidate(SHIP, ("contrast",))]
    attempt = Attempt(
        tried=[(idea, [arm(idea.feature, 0.5), arm(idea.feature, 1.0)]) for idea in ideas],
        passed=[(FeatureCandidate(SOUP, ("search",)), "2 others were more promising.")],
        screened=[
            screened(SHIP, 1.0, 0.3),
            screened(SEA, 1.0, 0.2),
            screened(SEA, 0.5, 0.1),
            screened(SHIP, 0.5, -0.1, None),
        ],
        finalists=[one.arm for one in tested] if finalists is None else finalists,
        tested=tested,
        controls=[(arm(FeatureId("s", number), 1.0), 0.01) for number in range(10, 22)] if tested else [],
    )
    return verdict(Suggest(wish="talk about the sea"), attempt, served, FeatureSearch({}))


def trial(some: TrialArm, judged: Superiority = GOOD, perplexity: float = 1.5) -> Finalist:
    return Finalist(some, judged, perplexity, 0.1, "Ahoy.")


def test_what_passes_is_recommended_with_its_evidence(served: SteeringContext) -> None:
    found = verdict_of(served, trial(arm(SEA, 1.0)), trial(arm(SHIP, 1.0), GOOD._replace(gain=0.1)))
    assert (found.outcome, found.example, found.num_tried) == ("found", "Ahoy.", 4)
    assert found.steering is not None
    assert [(move["feature"], move["value"], move["unit"]) for move in found.steering["interventions"]] == [
        ("s/0", 1.0, "max_act")
    ]
    assert [(one.feature, one.reason) for one in found.chosen] == [("s/0", None)]
    assert [(one.strength, one.gain) for one in found.chosen[0].curve] == [(0.5, 0.1), (1.0, 0.2)]
    assert [(one.features, one.reason) for one in found.trials] == [
        (("s/0",), None),
        (("s/1",), "It works, but another was taken."),
    ]
    assert found.best == found.trials[0]
    assert [(one.feature, one.reason) for one in found.alternatives] == [
        ("s/1", "It works, but another was taken."),
        ("s/2", "2 others were more promising."),
    ]
    assert (len(found.controls), found.controls[0].feature, found.controls[0].value_act) == (12, "s/10", 10.0)


@pytest.mark.parametrize(("gain", "chosen"), [(0.21, ["s/0"]), (0.23, ["s/0", "s/1"])])
def test_a_pair_is_taken_only_where_it_gains_clearly_more(
    served: SteeringContext, gain: float, chosen: list[str]
) -> None:
    pair = TrialArm((SEA, SHIP), (0.7, 0.7), (7.0, 7.0))
    found = verdict_of(served, trial(arm(SEA, 1.0)), trial(pair, GOOD._replace(gain=gain)))
    assert [one.feature for one in found.chosen] == chosen
    assert found.num_tried == 5
    assert found.steering is not None
    values = [move["value"] for move in found.steering["interventions"]]
    assert values == [1.0] if len(chosen) == 1 else values == [0.7, 0.7]


@pytest.mark.parametrize(
    ("judged", "perplexity", "says"),
    [
        pytest.param(
            Superiority(0.02, None, 0.2, None, 0.2),
            1.5,
            "Unsteered answers may come as near to the wish",
            id="by-chance",
        ),
        pytest.param(
            GOOD._replace(p_controls=0.1, p=0.4), 1.5, "Random features that move the stream as far", id="random"
        ),
        pytest.param(GOOD._replace(gain=0.035), 1.5, "too little to be noticed", id="too-small"),
        pytest.param(GOOD, 4.2, "Its text falls apart: 4.2 times", id="falls-apart"),
    ],
)
def test_what_does_not_pass_is_not_recommended_and_it_is_said_why(
    served: SteeringContext, judged: Superiority, perplexity: float, says: str
) -> None:
    found = verdict_of(served, trial(arm(SEA, 1.0), judged, perplexity))
    assert (found.outcome, found.steering, found.chosen, found.best) == ("nothing_found", None, (), None)
    assert found.note is not None
    assert found.note.startswith("Nothing found")
    assert [one.works for one in found.trials] == [False]
    assert says in str(found.trials[0].reason)
    reasons = {one.feature: str(one.reason) for one in found.alternatives}
    assert says in reasons["s/0"]
    assert reasons["s/1"] == "On a first look others gained more (+0.300 at 1 x max)."


def test_it_is_said_why_nothing_could_be_tested(served: SteeringContext) -> None:
    assert "leaves them readable" in str(verdict_of(served, finalists=[]).note)
    assert "too few other features" in str(verdict_of(served, finalists=[arm(SEA, 1.0)]).note)
