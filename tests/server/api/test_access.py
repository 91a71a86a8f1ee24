"""Every route of the real app, in all its spellings: the key is asked for, and what is not listed is not there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.routing import BaseRoute
from vllm.entrypoints.launchers.app import build_app
from vllm.utils.argparse_utils import FlexibleArgumentParser

from saeclamp_server import playground
from saeclamp_server.api.access import PUBLIC, WITH_KEY
from saeclamp_server.api.drain import Drain
from saeclamp_server.app import build_steering_app
from saeclamp_server.startup.options import MAX_BODY
from saeclamp_server.vllm_compat import import_cli_args

KEY = "sk-right"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW")
TASKS = ("generate", "render", "transcription", "realtime", "embed", "classify", "token_embed")
"""All for which vLLM has routes, so that those of models which cannot be served are walked too."""
NOT_SERVED = {
    "/inference/v1/abort_requests",
    "/inference/v1/generate",
    "/is_scaling_elastic_ep",
    "/kv_event_sources",
    "/scale_elastic_ep",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/realtime",
    "/v1/systemone",
}
"""What vLLM serves besides; not among them what developers can do, see `test_developers_endpoints_are_not_served`."""
SINCE_0_33 = {"/v1/decisions"}


def args(*argv: str) -> Any:
    parser = import_cli_args().make_arg_parser(FlexibleArgumentParser())
    return parser.parse_args(["model", "--enable-tokenizer-info-endpoint", *argv])


def app(*argv: str, has_playground: bool = True) -> FastAPI:
    made = build_steering_app(args(*argv), TASKS, None, Drain(), MAX_BODY, has_playground)
    made.state.engine_client = SimpleNamespace(errored=False, check_health=_healthy)
    made.state.saeclamp = SimpleNamespace(drain=Drain(), vllm=made.state, database=SimpleNamespace(is_up=True))
    return made


async def _healthy() -> None: ...


@pytest.fixture(scope="module")
def guarded() -> FastAPI:
    return app("--api-key", KEY, "sk-other")


def call(to: FastAPI, method: str, path: str, **headers: str) -> httpx.Response:
    """Send a path as it stands, without httpx' tidying."""

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(to, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            url = httpx.URL("http://test").copy_with(raw_path=path.encode())
            return await client.request(method, url, headers=headers)

    return asyncio.run(send())


def routes_of(one: FastAPI) -> list[str]:
    return sorted({route.path for route in one.routes if isinstance(route, BaseRoute) and hasattr(route, "path")})


def spellings(template: str) -> Iterator[str]:
    path = template.replace("{model:path}", "tiny").replace("{name:path}", "x").replace("{", "").replace("}", "")
    yield path
    yield f"{path}/"
    yield f"{path}//"
    yield f"/{path}"
    yield f"{path};a=b"
    yield f"{path}%00"
    yield f"{path}?{path}"
    yield f"{path}%3f"
    yield path.upper()
    yield path.title()
    yield f"/{path[1:].replace('/', '%2f')}"
    if path[1:]:
        yield f"/%{ord(path[1]):x}{path[2:]}"
    yield f"/health/..{path}"
    yield f"/.{path}"
    yield f"{path}/../health"
    yield f"/health%2f..{path}"
    yield f"/health;{path}"
    yield f"/ready{path}"
    yield f"{path}x"


def test_what_is_public_is_three_paths() -> None:
    assert {"/health", "/ping", "/ready"} == PUBLIC


@pytest.mark.parametrize("path", sorted(PUBLIC))
def test_what_is_public_answers_without_a_key(guarded: FastAPI, path: str) -> None:
    assert call(guarded, "GET", path).status_code == 200


def test_the_page_is_public_and_the_api_behind_it_is_not(guarded: FastAPI) -> None:
    for path in playground.PATHS:
        assert call(guarded, "GET", path).status_code in (200, 307), path
        assert call(guarded, "POST", path).status_code == 405, path
    assert call(guarded, "GET", "/v1/models").status_code == 401


def test_without_the_playground_its_paths_are_like_any_other_that_is_not_there() -> None:
    plain, guarded = app(has_playground=False), app("--api-key", KEY, has_playground=False)
    for path in playground.PATHS:
        assert call(plain, "GET", path).status_code == 404, path
        assert call(guarded, "GET", path).status_code == 401, path


# of the page's files, which are compared with one list, some stand for all
PAGE = ("/", "/playground", "/playground/", "/playground/app/main.js")


@pytest.mark.parametrize("template", [*routes_of(app(has_playground=False)), *PAGE])
def test_no_spelling_of_a_path_gets_past_the_key(guarded: FastAPI, template: str) -> None:
    for path in spellings(template):
        plain = path.partition("?")[0]
        if {plain, httpx.URL(f"http://test{plain}").path} & (PUBLIC | playground.PATHS):
            continue
        for method in METHODS:
            answer = call(guarded, method, path)
            assert answer.status_code == 401, (method, path)
            if method != "HEAD":
                assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/v1/realtime", "/v1/chat/completions", "/metrics", "/nowhere"])
@pytest.mark.parametrize("key", [None, b"sk-wrong"])
def test_a_websocket_is_refused_too(guarded: FastAPI, path: str, key: bytes | None) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    headers = [] if key is None else [(b"authorization", b"Bearer " + key)]
    scope = {"type": "websocket", "path": path, "raw_path": path.encode(), "headers": headers, "query_string": b""}
    asyncio.run(guarded({**scope, "subprotocols": [], "app": guarded, "extensions": {}}, receive, send))
    assert (sent[0]["type"], sent[0]["status"]) == ("websocket.http.response.start", 401)


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {KEY}"},
        {"Authorization": f"bearer {KEY}"},
        {"Authorization": "Bearer sk-other"},
        {"X-API-Key": KEY},
    ],
)
def test_either_key_opens_in_openais_and_in_anthropics_header(guarded: FastAPI, headers: dict[str, str]) -> None:
    assert call(guarded, "GET", "/openapi.json", **headers).status_code == 200
    assert call(guarded, "GET", "/metrics", **headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": f"Bearer {KEY[:-1]}"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer k\u00e9y".encode("latin-1").decode("latin-1")},
        {"Authorization": "Bearer wrong", "X-API-Key": KEY},
        {"X-API-Key": ""},
        {},
    ],
)
def test_nothing_else_opens(guarded: FastAPI, headers: dict[str, str]) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]

    async def send() -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(guarded), base_url="http://test") as client:
            return (await client.get("/v1/models", headers=raw)).status_code

    assert asyncio.run(send()) == 401


def test_a_page_of_another_origin_may_ask_what_it_may_send_and_read_why_it_was_refused() -> None:
    served = app("--api-key", KEY, "--allowed-origins", '["http://page"]')
    asks = {"Origin": "http://page", "Access-Control-Request-Method": "POST"}
    assert call(served, "OPTIONS", "/v1/completions", **asks).status_code == 200
    refused = call(served, "POST", "/v1/completions", Origin="http://page")
    assert (refused.status_code, refused.headers["Access-Control-Allow-Origin"]) == (401, "http://page")


def test_without_a_key_everything_on_the_list_answers() -> None:
    served = app()
    for path in ("/openapi.json", "/docs", "/metrics", "/metrics/", "/health", "/ready"):
        assert call(served, "GET", path).status_code == 200, path


def test_the_list_is_what_vllm_serves_but_for_what_is_left_out() -> None:
    theirs = set(routes_of(build_app(args(), TASKS, None)))
    # listed by one path, which takes all models
    theirs -= {"/v1/models/{model_id:path}"}
    assert theirs - (PUBLIC | WITH_KEY) - SINCE_0_33 == NOT_SERVED, "a route of vLLM that nobody has thought of"
    assert (PUBLIC | WITH_KEY) - theirs == {"/ready"}, "the list names what vLLM does not have"


@pytest.mark.parametrize("key", [(), ("--api-key", KEY)])
def test_what_is_not_on_the_list_is_not_there(key: tuple[str, ...]) -> None:
    served = app(*key)
    headers = {"Authorization": f"Bearer {KEY}"}
    for path in sorted(NOT_SERVED):
        for method in ("GET", "POST"):
            assert call(served, method, path, **headers).status_code == 404, path


def test_developers_endpoints_are_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    served = app()
    theirs = {getattr(route, "path", "") for route in build_app(args(), TASKS, None).routes}
    assert "/collective_rpc" in theirs
    for path in theirs - PUBLIC - WITH_KEY - {"/v1/models/{model_id:path}"}:
        assert call(served, "POST", path).status_code == 404, path


def test_a_prefix_of_a_proxy_is_no_way_around_the_key() -> None:
    served = app("--api-key", KEY, "--root-path", "/health")
    assert call(served, "GET", "/health/metrics").status_code == 401
    assert call(served, "GET", "/health/health").status_code == 200
    assert call(served, "GET", "/healthmetrics").status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "meant"),
    [
        ("POST", "/chat/completions", "/v1/chat/completions"),
        ("POST", "/v1/v1/chat/completions", "/v1/chat/completions"),
        ("GET", "/v1/v1/models/tiny", "/v1/models/tiny"),
        ("GET", "/v1/feature", "/v1/features"),
        ("POST", "/v1/completion", "/v1/completions"),
        ("GET", "/variants", "/v1/variants"),
        ("GET", "/v1/tokenize", "/tokenize"),
        ("GET", "/v1/health", "/health"),
    ],
)
def test_a_path_that_is_not_there_names_the_one_that_was_meant(method: str, path: str, meant: str) -> None:
    response = call(app(), method, path)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")
    assert response.json()["error"]["message"].startswith(f"There is no {path} here; did you mean {meant}. ")


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/", "/quite-another"])
def test_a_path_that_is_near_to_none_says_where_they_are_listed(path: str) -> None:
    response = call(app(has_playground=False), "GET", path)
    assert response.status_code == 404
    assert response.json()["error"]["message"] == (
        f"There is no {path} here. /openapi.json lists what is served, and /docs shows it."
    )


def test_a_long_path_is_not_repeated() -> None:
    response = call(app(), "GET", "/" + "a" * 5000)
    assert response.status_code == 404
    assert len(response.text) < 500
