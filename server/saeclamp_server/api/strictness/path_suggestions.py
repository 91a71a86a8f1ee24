"""Suggestions for a path that is not served: clients put `/v1` before it, or leave it to the base URL, or both."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from starlette.routing import Match
from starlette.types import Scope

from saeclamp.types.refusals import nearest, shown
from saeclamp_server.api.access import route_path

PREFIX = "/v1"
WHERE = "/openapi.json lists what is served, and /docs shows it."


def not_found(routes: Iterable[Any], scope: Scope) -> str:
    """Say that a path is not there, and which one was meant."""
    routes, path = list(routes), route_path(scope)
    bare = path.rstrip("/")
    while bare.startswith(f"{PREFIX}/"):
        bare = bare.removeprefix(PREFIX)
    meant = next((each for each in (PREFIX + bare, bare) if bare and _is_served(routes, scope, each)), None)
    if meant is None and bare not in ("", PREFIX):
        meant = nearest(path, [route.path for route in routes if "{" not in getattr(route, "path", "{")])
    return f"There is no {shown(path)[1:-1]} here{f'; did you mean {meant}' if meant else ''}. {WHERE}"


def _is_served(routes: Iterable[Any], scope: Scope, path: str) -> bool:
    """Tell whether some method of a path is served: which, the next answer says."""
    asked = {**scope, "path": path, "root_path": ""}
    return any(route.matches(asked)[0] != Match.NONE for route in routes)
