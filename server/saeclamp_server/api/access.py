"""
Access to endpoints: who may call which, and with which key.

One list says it. An endpoint of vLLM that is not on it is not served at all: its path is a 404, with a key and without one.
Our own endpoints need the key. Where the server has a key, whatever is not public is a 401 without it, a path that does not
exist among them: the check compares a whole path with the public ones, so no spelling of another path gets past it.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Sequence
from typing import Any

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from saeclamp_server.errors import UnauthorizedError

PUBLIC = frozenset({"/health", "/ping", "/ready"})
"""Paths that need no key: whoever can reach the server may ask whether it runs. The playground's files are others."""

WITH_KEY = frozenset(
    {
        "/detokenize",
        "/docs",
        "/docs/oauth2-redirect",
        "/generative_scoring",
        "/invocations",
        "/load",
        "/metrics",
        "/openapi.json",
        "/redoc",
        "/tokenize",
        "/tokenizer_info",
        "/v1/chat/completions",
        "/v1/chat/completions/batch",
        "/v1/chat/completions/derender",
        "/v1/chat/completions/render",
        "/v1/completions",
        "/v1/completions/derender",
        "/v1/completions/render",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/messages/render",
        "/v1/models",
        "/v1/responses",
        "/v1/responses/{response_id}",
        "/v1/responses/{response_id}/cancel",
        "/v1/responses/render",
        "/version",
    }
)
"""
Endpoints of vLLM, as their routes are written.

Not among them is what serves a cluster (`/scale_elastic_ep`, `/kv_event_sources`), what takes sampling parameters as they
are or ends requests of others (`/inference/v1/...`), what runs other models than language models, and the developers'
endpoints, by which whoever calls them can run code in the workers (`/collective_rpc`).
"""


def is_served(route: Any) -> bool:
    """Tell whether one of vLLM's routes is on the list; a route of a form that is not known here is not."""
    return getattr(route, "path", None) in PUBLIC | WITH_KEY


def route_path(scope: Scope) -> str:
    """Return the path by which a request is routed: without the prefix under which a proxy serves the whole server."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path.removeprefix(root) if path.startswith(f"{root}/") else path


class APIKeys:
    """Keys of which a request must carry one."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def accept(self, headers: Headers) -> bool:
        """Tell whether a request has one of the keys; takes as long for a nearly right one as for any other."""
        given = _digest(_given(headers))
        matches = [secrets.compare_digest(given, digest) for digest in self._digests]  # all, whichever is the right one
        return any(matches)


def _given(headers: Headers) -> str:
    """Read the key, as OpenAI's clients send it, or Anthropic's."""
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else headers.get("X-API-Key", "")


def _digest(key: str) -> bytes:
    # hashed, because by the time that `compare_digest` takes it shows whether two texts are equally long
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class KeyGuard:
    """ASGI middleware that lets only public paths be called without a key; behind CORS, which answers preflights."""

    def __init__(self, app: ASGIApp, keys: Sequence[str], public: frozenset[str] = PUBLIC) -> None:
        """public: paths that need no key"""
        self._app, self._keys, self._public = app, APIKeys(keys), public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is public or carries a key; refuse the rest, websockets too."""
        is_call = scope["type"] in ("http", "websocket")
        if is_call and route_path(scope) not in self._public and not self._keys.accept(Headers(scope=scope)):
            error = UnauthorizedError()
            headers = {"WWW-Authenticate": "Bearer"}
            return await JSONResponse(error.body(), error.status, headers)(scope, receive, send)
        await self._app(scope, receive, send)
