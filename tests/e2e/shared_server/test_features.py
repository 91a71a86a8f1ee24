"""A user looks a feature up on the running server, and moves it."""

from __future__ import annotations

import math
import time

import pytest
from tests.support.bundled import GOLDEN_GATE, LAYER, MAX_ACT
from tests.support.serving import Server

from saeclamp import Clamp, Client, FeatureHits
from saeclamp.types import InspectedFeature


def test_what_is_known_of_a_feature_can_be_used(server: Server) -> None:
    with Client(server.url) as client:
        saes = client.saes.list()
        assert saes.names == ["bundled", "second"]
        bundled = client.saes.get("bundled")
        assert bundled.fit is not None
        assert bundled.fit["explained_variance"] > 0.7
        assert bundled.resid_norm is not None
        feature = client.features.get("bundled/golden-gate")
        assert (feature.index, feature.max_act) == (GOLDEN_GATE, MAX_ACT)
        assert feature.best is not None
        answer = client.completions.create(
            prompt="The bridge", steering=Clamp(feature=feature.feature, value=feature.best), max_tokens=4
        )
        (item,) = answer.steering.interventions
        assert (item.name, item.layer, item.value_act) == ("golden-gate", LAYER, feature.best * MAX_ACT)
        # the receipt names the weights by the hash that the list shows
        assert answer.steering.sae == {"bundled": bundled.sha256}
        assert client.saes.get("second").labels is None
        assert client.features.get("second/3").examples is None


def test_what_is_unusual_in_a_text_comes_before_what_is_strong_everywhere(server: Server) -> None:
    text = "A walk across the Golden Gate Bridge, in the fog of San Francisco."
    with Client(server.url) as client:
        by_strength = client.features.inspect(text, saes=("bundled",), limit=60)
        by_rarity = client.features.inspect(text, saes=("bundled",), limit=60, order="tf_idf")
        bare = client.features.inspect(text, saes=("second",), limit=60, order="tf_idf")
        assert bare.features == client.features.inspect(text, saes=("second",), limit=60).features  # it has no labels

    def score(one: InspectedFeature) -> float:
        return one.max / one.max_act * -math.log(one.density) if one.max_act and one.density else -1.0

    scores = [score(one) for one in by_rarity.features]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == max(map(score, by_strength.features))
    densities = [one.density or 1.0 for one in by_rarity.features[:10]]
    assert max(densities) < max(one.density or 0.0 for one in by_strength.features[:10])


ENGLISH = """\
The children are playing in the garden.
I bought two loaves of bread this morning.
My brother works in a small office downtown.
The train to the coast leaves at noon.
She has been learning the violin for years.
We are going to the market tomorrow.
The weather was cold and grey all week.
He forgot his keys on the kitchen table.
There is a library behind the town hall.
They want to travel around the world.
The cat is sleeping on the sofa.
Our neighbours have a new car.
You should drink more water every day.
The film begins at nine in the evening.
I am looking for a cheap hotel.
Her grandmother tells wonderful stories.
The soup is too hot to eat.
Winter is long in the mountains.
We talked about politics until midnight.
The teacher explained the lesson twice.
""".splitlines()
FRENCH = """\
Les enfants jouent dans le jardin.
J'ai acheté deux pains ce matin.
Mon frère travaille dans un petit bureau au centre.
Le train pour la côte part à midi.
Elle apprend le violon depuis des années.
Nous allons au marché demain.
Le temps était froid et gris toute la semaine.
Il a oublié ses clés sur la table de la cuisine.
Il y a une bibliothèque derrière la mairie.
Ils veulent voyager autour du monde.
Le chat dort sur le canapé.
Nos voisins ont une nouvelle voiture.
Tu devrais boire plus d'eau chaque jour.
Le film commence à neuf heures du soir.
Je cherche un hôtel pas cher.
Sa grand-mère raconte des histoires merveilleuses.
La soupe est trop chaude pour être mangée.
L'hiver est long dans les montagnes.
Nous avons parlé de politique jusqu'à minuit.
Le professeur a expliqué la leçon deux fois.
""".splitlines()


@pytest.fixture(scope="module")
def client(server: Server) -> Client:
    return Client(server.url)


def searched(client: Client, query: str) -> FeatureHits:
    """Search when embeddings are there; a fresh machine computes them first."""
    deadline = time.monotonic() + 300
    while True:
        found = client.features.search(query)
        if found.note is None or time.monotonic() > deadline:
            return found
        time.sleep(1)


def test_a_search_for_bridge_finds_the_golden_gate(client: Client) -> None:
    found = searched(client, "bridge")
    assert found.rankings == ("words", "tokens", "meaning")
    assert GOLDEN_GATE in [hit.index for hit in found.data[:3]]
    assert "golden-gate" in [hit.name for hit in searched(client, "San Francisco landmark").data[:3]]
    assert searched(client, "talk about the sea").data[0].name == "sea"
    # no word of it is in the feature's label or tokens
    assert "sea" in [hit.name for hit in searched(client, "sailors and the ocean").data]


def test_a_sentence_about_the_bridge_shows_its_feature_on_its_tokens(client: Client) -> None:
    found = client.features.inspect(
        "My dog likes soup. The Golden Gate Bridge in San Francisco is orange.", features=("bundled/golden-gate",)
    )
    acts = [(token.text, token.features.get("bundled/golden-gate", 0.0)) for token in found.tokens]
    before, about = acts[:5], acts[7:]
    assert max(act for _, act in before) == 0
    assert max(act for _, act in about) > MAX_ACT / 4
    assert {" Bridge", " San", " Francisco"} & {text for text, act in about if act > 0}


def test_contrasting_french_with_english_finds_the_french_feature(client: Client) -> None:
    assert len(FRENCH) == len(ENGLISH) == 20
    found = client.features.contrast(FRENCH, ENGLISH, saes=("bundled",))
    first = found.data[0]
    assert "french" in [one.name for one in found.data if one.significant][:3]
    assert (first.significant, first.effect > 0.9) == (True, True)
    assert found.num_significant < 60
    none = client.features.contrast(ENGLISH[::2], ENGLISH[1::2], saes=("bundled",))
    assert none.num_significant == 0


def test_what_was_found_can_be_composed_into_steering(client: Client) -> None:
    (gate,) = (hit for hit in searched(client, "golden gate").data if hit.index == GOLDEN_GATE)
    assert gate.best is not None
    validated = client.steering.validate(gate.clamp(gate.best))
    (planned,) = validated.interventions
    assert (planned.index, planned.name, planned.value_act) == (GOLDEN_GATE, "golden-gate", gate.best * MAX_ACT)
    assert planned.dose is not None
    assert validated.doses == {f"resid_post {LAYER}": planned.dose}
    assert validated.warnings == ()
    answer = client.completions.create(prompt="The bridge", steering=gate.clamp(gate.best), max_tokens=2)
    assert answer.steering is not None
    assert answer.steering.spec == validated.spec
    assert "outside the zone" in client.steering.validate(gate.clamp(3)).warnings[0]


def test_a_comparison_shows_what_the_steering_does_and_a_prompt(client: Client) -> None:
    compared = client.steering.compare(
        Clamp(feature="bundled/golden-gate", value=0.75),
        [{"role": "user", "content": "What should I cook for dinner tonight?"}],
        prompted="Mention the Golden Gate Bridge in every answer.",
        seeds=(1, 2),
        max_tokens=40,
        repetition_penalty=1.1,
    )
    assert [answer.seed for answer in compared.default] == [1, 2]
    assert compared.prompted is not None
    for default, steered in zip(compared.default, compared.steered, strict=True):
        assert "Golden Gate" in steered.text
        assert "Golden Gate" not in default.text
        assert steered.differences
        assert default.differences == ()
        assert steered.kl is not None
        assert default.kl is not None
        assert steered.kl > 0.1
        assert default.kl < 0.01  # of itself
        assert steered.perplexity > default.perplexity  # type: ignore[operator]
    assert len(compared.receipts) == 2
    assert compared.receipts[0].applied


@pytest.mark.parametrize(("wish", "name"), [("talk about the sea", "sea"), ("talk about food", "food")])
def test_a_wish_becomes_a_steering_that_beats_unsteered_answers_and_random_features(
    client: Client, wish: str, name: str
) -> None:
    searched(client, wish)  # embeddings are there
    found = client.features.suggest(wish, saes=("bundled",), num_candidates=2, strengths=(0.75, 1.0), max_tokens=16)
    assert found.outcome == "found"
    assert found.steering is not None
    assert found.best is not None
    # other features can do it too, some of them better
    assert name in [one.name for one in (*found.chosen, *(other for other in found.alternatives if other.curve))]
    assert found.best.control is not None
    assert found.best.p <= 0.05
    assert found.best.gain > found.best.control + 0.03
    assert found.best.perplexity <= 3
    assert len(found.controls) == 12
    assert not {control.feature for control in found.controls} & {other.feature for other in found.alternatives}
    assert all(other.reason for other in found.alternatives)
    answer = client.chat.completions.create(
        messages=[{"role": "user", "content": "What makes a good friend?"}], steering=found.steering, max_tokens=8
    )
    assert answer.steering is not None
    assert [f"bundled/{item.index}" for item in answer.steering.interventions] == [one.feature for one in found.chosen]


@pytest.mark.parametrize("wish", ["always zux the glex", "vkprdlnktugrpo jowmkq", "seven rather of not neither than"])
def test_nothing_is_suggested_for_a_wish_that_means_nothing(client: Client, wish: str) -> None:
    found = client.features.suggest(wish, saes=("bundled",), num_candidates=2, strengths=(0.75, 1.0), max_tokens=16)
    assert found.outcome == "nothing_found"
    assert (found.steering, found.chosen, found.best, found.example) == (None, (), None, None)
    assert found.note is not None
    assert found.note.startswith("Nothing found")
    assert [trial.works for trial in found.trials] == [False] * len(found.trials)
    # what was tried is told all the same
    assert found.num_tried >= 4
    assert [len(other.curve) for other in found.alternatives[:3]] == [2, 2, 0]
    assert all(trial.reason for trial in found.trials)
