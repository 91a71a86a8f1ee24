"""Our own endpoints keep what their OpenAPI promises, whatever they are sent: never a 5xx, and refusals of the one form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)
from tests.support.serving import Server
from tests.support.tiny_engine import tiny_engine

from saeclamp_server.api import variants, vectors
from saeclamp_server.api.features import router as features
from saeclamp_server.api.steering import router as steering

REAL = {"model": "tiny", "base": "tiny", "feature": "low/3", "features": ["low/3", "high/7"], "sae": "high"}
"""What is there: nearly everything that is made up would be refused for its names alone."""
MOST = {"max_tokens": 4, "num_candidates": 1}
"""So much as is wanted of each answer, so that many can be asked for."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[Server]:
    with tiny_engine(tmp_path_factory.mktemp("tiny"), model_folder, "llama", "--enforce-eager") as (running, _):
        yield running


def documentation() -> dict[str, Any]:
    """What a server says of our endpoints."""
    app = FastAPI()
    for part in (features, steering, variants, vectors):
        app.include_router(part.router)
    return app.openapi()


def with_real_names(value: Any) -> Any:
    """The same, where names are those of what is there, and no more is asked for than is needed."""
    if isinstance(value, list):
        return [with_real_names(part) for part in value]
    if not isinstance(value, dict):
        return value
    parts = {key: with_real_names(part) for key, part in value.items()}
    real = {key: name for key, name in REAL.items() if key in parts and type(parts[key]) is type(name)}
    least = {key: min(part, MOST[key]) for key, part in parts.items() if key in MOST and type(part) is int}
    return parts | real | least


SCHEMA = schemathesis.openapi.from_dict(documentation())
ENDPOINTS = [(method.upper(), path) for path, methods in documentation()["paths"].items() for method in methods]
PROMISES = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


def send_many(server: Server, cases: SearchStrategy[schemathesis.Case], checks: Sequence[Any]) -> None:
    @settings(max_examples=25, suppress_health_check=list(HealthCheck), deadline=None, phases=[Phase.generate])
    @given(case=cases)
    def send(case: schemathesis.Case) -> None:
        case.call_and_validate(server.url, checks=checks)

    send()


def test_the_server_documents_these_endpoints(server: Server) -> None:
    said = server.http.get("/openapi.json").json()["paths"]
    assert {path: said[path] for path in documentation()["paths"]} == documentation()["paths"]


@pytest.mark.parametrize(("method", "path"), [*(one for one in ENDPOINTS if one[0] == "POST"), ("GET", "/v1/features")])
def test_what_is_malformed_is_refused_as_documented(server: Server, method: str, path: str) -> None:
    cases = SCHEMA[path][method].as_strategy(generation_mode=GenerationMode.NEGATIVE)
    send_many(server, cases, [*PROMISES, is_refused])


def is_refused(context: Any, response: Any, case: schemathesis.Case) -> bool | None:
    """Let what is malformed be refused for its size, which schemathesis does not take for a refusal."""
    return None if response.status_code == 413 else negative_data_rejection(context, response, case)


@pytest.mark.parametrize(("method", "path"), ENDPOINTS)
def test_what_is_well_formed_is_answered_as_documented(server: Server, method: str, path: str) -> None:
    cases = SCHEMA[path][method].as_strategy(generation_mode=GenerationMode.POSITIVE)
    if method == "POST":
        cases = cases.map(of_what_is_there)
    send_many(server, cases, PROMISES)


def of_what_is_there(case: schemathesis.Case) -> schemathesis.Case:
    case.body = with_real_names(case.body)
    return case
