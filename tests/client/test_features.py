"""`client.saes` and `client.features`: what is sent, and what comes back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.support.scripted_server import ScriptedServer, reply

from saeclamp import AsyncClient, Client, NotFoundError

SAE: dict[str, Any] = {
    "object": "sae",
    "name": "bundled",
    "kind": "sae",
    "architecture": "jumprelu",
    "reads": ["resid_post 23"],
    "writes": ["resid_post 23"],
    "d_in": 576,
    "d_out": 576,
    "d_sae": 4096,
    "unit": "native",
    "sha256": "sha256:1",
}
FEATURE: dict[str, Any] = {
    "object": "feature",
    "feature": "bundled/54",
    "sae": "bundled",
    "index": 54,
    "name": "golden-gate",
    "labels": [{"text": "the bridge", "source": "feature book"}],
    "max_act": 215.5,
    "green_zone": [0.7, 0.8],
    "new": 1,
}


def test_saes_are_listed_and_looked_up(server: ScriptedServer, client: Client) -> None:
    server.will(reply({"object": "list", "data": [SAE]}), reply(SAE))
    assert client.saes.list().names == ["bundled"]
    sae = client.saes.get("bundled")
    assert (sae.d_sae, sae.writes, sae.labels) == (4096, ("resid_post 23",), None)
    assert [(seen.method, seen.path) for seen in server.seen] == [("GET", "/v1/saes"), ("GET", "/v1/saes/bundled")]


def test_a_feature_is_looked_up_by_the_name_that_interventions_have(server: ScriptedServer, client: Client) -> None:
    server.will(reply(FEATURE), reply(FEATURE))
    feature = client.features.get("bundled/golden-gate")
    assert (feature.index, feature.green_zone, feature.density) == (54, (0.7, 0.8), None)
    assert feature.label is not None
    assert (feature.label.text, feature.label.score) == ("the bridge", None)
    assert feature.model_extra == {"new": 1}
    client.features.get("bundled/a:b,c(d)+e")
    assert [seen.path for seen in server.seen] == [
        "/v1/features/bundled/golden-gate",
        "/v1/features/bundled/a%3Ab%2Cc%28d%29%2Be",
    ]


def test_a_feature_that_could_lead_elsewhere_is_not_sent(server: ScriptedServer, client: Client) -> None:
    for feature in ("", "bundled", "bundled/", "/3", "../3", "bundled/..", "."):
        with pytest.raises(ValueError, match=r"a feature is written|Nothing can be named"):
            client.features.get(feature)
    assert server.seen == []


def test_what_there_is_not_is_said(server: ScriptedServer, client: Client) -> None:
    error = {
        "message": "No SAE named 'x' is loaded.",
        "type": "invalid_request_error",
        "param": "sae",
        "code": "unknown_sae",
    }
    server.will(reply({"error": error}, status=404))
    with pytest.raises(NotFoundError, match="No SAE named 'x'"):
        client.saes.get("x")


def test_the_same_with_asyncio(server: ScriptedServer) -> None:
    server.will(reply({"object": "list", "data": [SAE]}), reply(SAE), reply(FEATURE))

    async def run() -> None:
        async with AsyncClient(server.url) as client:
            assert (await client.saes.list()).names == ["bundled"]
            assert (await client.saes.get("bundled")).d_sae == 4096
            assert (await client.features.get("bundled/54")).name == "golden-gate"

    asyncio.run(run())
    assert [seen.path for seen in server.seen] == ["/v1/saes", "/v1/saes/bundled", "/v1/features/bundled/54"]
