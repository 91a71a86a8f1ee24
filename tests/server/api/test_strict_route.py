"""Our own endpoints say what they take and give, and refuse in OpenAI's envelope, before anything is run."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from tests.support.bundled import ENTRY
from tests.support.lookup_app import LENGTHS
from tests.support.sae_entries import served_saes

from saeclamp_server.api import variants, vectors
from saeclamp_server.api.error_handlers import refuse
from saeclamp_server.api.features import router as features
from saeclamp_server.api.steering import router as steering
from saeclamp_server.errors import RequestError
from saeclamp_server.steering import SteeringContext

ROUTERS = (features, steering, variants, vectors)
PATHS = {
    "/v1/saes",
    "/v1/saes/{sae}",
    "/v1/features",
    "/v1/features/{sae}/{feature}",
    "/v1/features/inspect",
    "/v1/features/contrast",
    "/v1/features/attribute",
    "/v1/features/neighbours",
    "/v1/features/suggest",
    "/v1/steering/validate",
    "/v1/steering/compare",
    "/v1/variants",
    "/v1/variants/export",
    "/v1/variants/import",
    "/v1/variants/{name}",
    "/v1/vectors",
    "/v1/vectors/derive",
    "/v1/vectors/{name}",
}


def everything() -> FastAPI:
    """All routers, of a server whose engine is never reached."""
    served = FastAPI()
    for part in ROUTERS:
        served.include_router(part.router)
    served.add_exception_handler(RequestError, refuse)
    served.state.saeclamp = SimpleNamespace(
        context=SteeringContext(served_saes((ENTRY, LENGTHS))),
        **dict.fromkeys(("model", "cells", "search", "decoder", "variants", "vectors", "prompt_means")),
    )
    return served


def send(method: str, path: str, **request: Any) -> tuple[int, Any]:
    async def ask() -> tuple[int, Any]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(everything()), base_url="http://test") as http:
            response = await http.request(method, path, **request)
            return response.status_code, response.json()

    return asyncio.run(ask())


def test_every_endpoint_documents_what_it_takes_what_it_gives_and_how_it_refuses() -> None:
    schema = everything().openapi()
    assert set(schema["paths"]) == PATHS
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            said = operation["responses"]
            success = next(said[status] for status in ("200", "201") if status in said)
            assert success["content"]["application/json"]["schema"] != {}, (method, path)
            refused = said["400"]["content"]["application/json"]["schema"]
            assert refused == {"$ref": "#/components/schemas/ErrorBody"}, (method, path)
            if method == "post":
                assert operation["requestBody"]["content"], path
            assert operation["summary"], path


STEER = {"interventions": [{"op": "ablate", "feature": "bundled/sea"}]}


@pytest.mark.parametrize(
    ("path", "body", "param", "says"),
    [
        ("/v1/features/inspect", {}, None, "give one of 'text' and 'messages'"),
        ("/v1/features/inspect", {"text": 3}, "text", "valid string"),
        ("/v1/features/inspect", {"text": "a", "topk": 1}, "topk", "Did you mean 'top_k'?"),
        ("/v1/features/inspect", {"text": "a", "top_k": 65}, "top_k", "less than or equal to 64"),
        ("/v1/features/inspect", {"messages": []}, "messages", "the list is empty"),
        ("/v1/features/inspect", {"messages": ["hi"]}, "messages[0]", "dictionary"),
        ("/v1/features/contrast", {"positive": ["a"]}, "negative", "required"),
        ("/v1/features/neighbours", {"features": ["sea"]}, "features[0]", "a feature is written"),
        ("/v1/steering/validate", {}, "steering", "required"),
        (
            "/v1/steering/validate",
            {"steering": {"interventions": [{"op": "clmp"}]}},
            "steering.interventions[0]",
            "'clamp'",
        ),
        ("/v1/steering/validate", {"steering": []}, "steering", "a list goes into it as its 'interventions'"),
        ("/v1/steering/validate", {"steering": STEER, "message": []}, "message", "Did you mean 'messages'?"),
        ("/v1/steering/compare", {"text": "a", "steering": {"readout": {"top_k": 1}}}, None, "nothing to compare"),
        ("/v1/steering/compare", {"text": "a", "steering": STEER, "prompted": "x"}, None, "needs 'messages'"),
        ("/v1/steering/compare", {"text": "a", "steering": STEER, "seeds": [-1]}, "seeds[0]", "greater than"),
        ("/v1/variants", {"name": "a/b", "steering": STEER}, "name", "a name is"),
        ("/v1/variants/import", {"data": [{"name": "a"}]}, "data[0].base", "required"),
    ],
)
def test_a_bad_body_is_a_400_that_names_the_place(path: str, body: Any, param: str | None, says: str) -> None:
    status, answer = send("POST", path, json=body)
    assert status == 400, answer
    assert answer["error"].keys() == {"message", "type", "param", "code"}
    assert answer["error"]["param"] == param, answer
    assert says.lower() in answer["error"]["message"].lower(), answer


@pytest.mark.parametrize(
    ("content", "says"), [(b"{", "not JSON"), (b"", "JSON object"), (b"[]", "JSON object"), (b"3", "JSON object")]
)
def test_a_body_that_is_no_object_is_a_400(content: bytes, says: str) -> None:
    status, answer = send("POST", "/v1/features/inspect", content=content, headers={"Content-Type": "application/json"})
    assert status == 400
    assert says.lower() in answer["error"]["message"].lower(), answer


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"text": "a"}'.encode("utf-16"), "UTF-16"),
        ('{"text": "a"}'.encode("utf-8-sig"), "byte order mark"),
        ('{"text": "é"}'.encode("latin-1"), "not UTF-8"),
        (b"\x1f\x8b\x08", "compressed"),
        (b'{"text": "a", "top_k": NaN}', "no number"),
    ],
)
def test_a_body_that_is_not_plain_utf_8_is_refused(content: bytes, says: str) -> None:
    status, answer = send("POST", "/v1/features/inspect", content=content, headers={"Content-Type": "application/json"})
    assert status == 400
    assert says in answer["error"]["message"], answer


def test_steering_that_is_given_twice_is_refused() -> None:
    body = b'{"steering": {"readout": {"top_k": 1}}, "steering": null}'
    status, answer = send("POST", "/v1/steering/validate", content=body, headers={"Content-Type": "application/json"})
    assert (status, answer["error"]["param"]) == (400, "steering")


@pytest.mark.parametrize(
    ("params", "param", "says"),
    [
        ({"querry": "sea"}, "querry", "Did you mean 'query'?"),
        ({"limit": "x"}, "limit", "integer"),
        ({"limit": "101"}, "limit", "100"),
        ({"sae": ["bundled", "other"]}, "sae", "Loaded: bundled"),
        ({"max_density": "2"}, "max_density", "less than or equal"),
        ({"query": "x" * 501}, "query", "500"),
    ],
)
def test_bad_parameters_are_a_400_that_names_them(params: Any, param: str, says: str) -> None:
    status, answer = send("GET", "/v1/features", params=params)
    assert (status, answer["error"]["param"]) == (400, param), answer
    assert says in answer["error"]["message"], answer


@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        (b'{"text": "' + b"a" * (32 << 20) + b'"}', 413, "at most 33554432 are taken"),
        (json.dumps({f"k{n}": 1 for n in range(1001)}).encode(), 400, "1001 fields; at most 1000"),
        (json.dumps({"text": "a", "messages": [{"k" * 257: 1}]}).encode(), 400, "has 257 characters: 'kkk"),
        (json.dumps({"text": "a" * 100_000, "topk": 1}).encode(), 400, "Did you mean 'top_k'?"),
    ],
    ids=["bytes", "fields", "name", "large-and-misspelt"],
)
def test_bodies_are_bounded(content: bytes, status: int, says: str) -> None:
    found, answer = send("POST", "/v1/features/inspect", content=content, headers={"Content-Type": "application/json"})
    assert (found, says in answer["error"]["message"]) == (status, True), answer
