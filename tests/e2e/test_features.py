"""A user looks a feature up on the running server, and moves it."""

from __future__ import annotations

from tests.bundled import GOLDEN_GATE, LAYER, MAX_ACT
from tests.e2e.serving import Server

from saeclamp import Clamp, Client


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
