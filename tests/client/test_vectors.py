"""`client.vectors`: what is sent, and what comes back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.support.scripted_server import ScriptedServer, reply

from saeclamp import Add, AsyncClient, BadRequestError, Client, NotFoundError, Steering

VECTOR: dict[str, Any] = {
    "object": "vector",
    "name": "sleepy",
    "site": "resid_post 12",
    "layer": 12,
    "sign": -1,
    "source": "difference of means, 40 prompts",
    "norm": 3.5,
    "resid_norm": 0.07,
    "sha256": "sha256:1",
}
FILE = b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "


@pytest.mark.parametrize("as_path", [False, True])
def test_a_file_is_sent_as_it_is(server: ScriptedServer, client: Client, tmp_path: Path, as_path: bool) -> None:
    server.will(reply(VECTOR | {"new": 1}, status=201, headers={"x-request-id": "r-1"}))
    (tmp_path / "v.safetensors").write_bytes(FILE)
    vector = client.vectors.upload("sleepy", tmp_path / "v.safetensors" if as_path else FILE)
    (seen,) = server.seen
    assert (seen.method, seen.path, seen.content) == ("POST", "/v1/vectors?name=sleepy", FILE)
    assert seen.headers["content-type"] == "application/octet-stream"
    assert (vector.name, vector.site, vector.sign, vector.resid_norm) == ("sleepy", "resid_post 12", -1, 0.07)
    assert (vector.request_id, vector.model_extra) == ("r-1", {"new": 1})


def test_vectors_are_listed_looked_up_and_deleted(server: ScriptedServer, client: Client) -> None:
    listed = {"object": "list", "data": [VECTOR], "sites": ["resid_post 12"], "max_vectors": 256}
    server.will(reply(listed), reply(VECTOR), reply({"object": "vector", "name": "sleepy", "deleted": True}))
    vectors = client.vectors.list()
    assert (vectors.names, vectors.sites, vectors.max_vectors) == (["sleepy"], ("resid_post 12",), 256)
    assert client.vectors.get("sleepy").norm == 3.5
    assert client.vectors.delete("sleepy").deleted
    assert [(seen.method, seen.path) for seen in server.seen] == [
        ("GET", "/v1/vectors"),
        ("GET", "/v1/vectors/sleepy"),
        ("DELETE", "/v1/vectors/sleepy"),
    ]


def test_a_name_that_could_lead_elsewhere_is_not_sent(server: ScriptedServer, client: Client) -> None:
    for name in ("", ".", "..", "../models", "a b", "a?b", "a\n", "x" * 65):
        with pytest.raises(ValueError, match="no vector can be named"):
            client.vectors.get(name)
    assert server.seen == []


def test_refusals_are_typed(server: ScriptedServer, client: Client) -> None:
    error = {
        "message": "is missing",
        "type": "invalid_request_error",
        "param": "metadata.sign",
        "code": "invalid_vector",
    }
    server.will(reply({"error": error}, status=400), reply({"error": error | {"code": "unknown_vector"}}, status=404))
    with pytest.raises(BadRequestError) as raised:
        client.vectors.upload("sleepy", FILE)
    assert (raised.value.param, raised.value.code) == ("metadata.sign", "invalid_vector")
    with pytest.raises(NotFoundError):
        client.vectors.delete("sleepy")


def test_the_same_with_asyncio(server: ScriptedServer) -> None:
    listed = {"object": "list", "data": [VECTOR], "sites": []}
    deleted = {"object": "vector", "name": "sleepy", "deleted": True}
    server.will(reply(VECTOR, status=201), reply(listed), reply(VECTOR), reply(deleted))

    async def run() -> None:
        async with AsyncClient(server.url) as client:
            assert (await client.vectors.upload("sleepy", FILE)).name == "sleepy"
            assert (await client.vectors.list()).names == ["sleepy"]
            assert (await client.vectors.get("sleepy")).layer == 12
            assert (await client.vectors.delete("sleepy")).deleted

    asyncio.run(run())
    assert server.seen[0].content == FILE


def test_an_intervention_names_a_vector() -> None:
    steering = Steering(interventions=(Add(vector="sleepy", value=1.0, unit="act"),))
    assert steering.to_json()["interventions"] == [
        {"vector": "sleepy", "tokens": "all", "special_tokens": False, "op": "add", "value": 1.0, "unit": "act"}
    ]
