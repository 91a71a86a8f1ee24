"""Our own endpoints keep what their OpenAPI promises, whatever they are sent: never a 5xx, and refusals of the one form."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)
from tests.e2e.serving import Server
from tests.e2e.tiny_engine import tiny_engine

OWN_PATHS = r"^/v1/(saes|features|steering|variants|vectors)"
REAL = {"model": "tiny", "base": "tiny", "feature": "low/3", "features": ["low/3", "high/7"], "sae": "high"}
"""What is there: nearly everything that is made up would be refused for its names alone."""
MOST = {"max_tokens": 4, "prompts": 2, "n": 2}
"""So much as is wanted of each answer, so that many can be asked for."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[Server]:
    with tiny_engine(tmp_path_factory.mktemp("tiny"), model_folder, "llama", "--enforce-eager") as (running, _):
        yield running


@pytest.fixture
def own_schema(server: Server) -> Any:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json").include(path_regex=OWN_PATHS)


every_endpoint = schemathesis.pytest.from_fixture("own_schema")


@every_endpoint.hook
def map_body(context: Any, body: Any) -> Any:
    return with_real_names(body) if len(str(body)) % 3 else body


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


@every_endpoint.parametrize()
@settings(max_examples=40, suppress_health_check=list(HealthCheck), deadline=None)
def test_every_endpoint_keeps_its_promises(case: schemathesis.Case) -> None:
    case.call_and_validate(
        checks=[
            not_a_server_error,
            status_code_conformance,
            content_type_conformance,
            response_schema_conformance,
            negative_data_rejection,
        ]
    )
