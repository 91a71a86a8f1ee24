"""Steering that is asked for in a request's URL or headers, where nobody reads it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl

from saeclamp.types import MAX_KEY
from saeclamp.types.refusals import shown
from saeclamp_server.api.strictness.foreign_keys import SteeringKeys, plain
from saeclamp_server.api.strictness.foreign_shapes import AT_TOP_LEVEL, WRAPPERS, variant_hint
from saeclamp_server.errors import InvalidRequestError, InvalidSteeringError

MAX_QUERY = 1 << 16
"""Bytes of a URL's query."""
HEADERS = (b"steering", b"saeclamp")
"""Beginnings of the headers by which someone would ask for steering, with `X-` before them or not."""


def query_fields(query: bytes) -> list[tuple[str, str]]:
    """Read a URL's query, whose fields some servers also tell apart by semicolons. Raises RequestError."""
    if len(query) > MAX_QUERY:
        raise InvalidRequestError(f"The URL's query has {len(query)} bytes; at most {MAX_QUERY} are read.", None)
    text = query.decode("latin-1")
    fields = parse_qsl(text, keep_blank_values=True)
    return fields + parse_qsl(text.replace(";", "&"), keep_blank_values=True) if ";" in text else fields


def refuse_query(query: bytes) -> None:
    """Raise RequestError for steering in the query of a request's URL."""
    keys = SteeringKeys()
    for key, value in query_fields(query):
        is_wrapper = plain(key) in (*WRAPPERS, "vllm_xargs")
        if is_wrapper or keys.ask(key) or "/" in key or '"steering"' in value:
            hint = f"{variant_hint(value, {})} " if "variant" in key[:MAX_KEY].lower() else ""
            raise InvalidSteeringError(f"The URL's {shown(key)} is not read. {hint}{AT_TOP_LEVEL}", key[:MAX_KEY])


def refuse_model_in_query(query: bytes, body: Any) -> None:
    """Raise RequestError for a model in the URL that is not the body's."""
    model = body.get("model") if isinstance(body, Mapping) else None
    for key, value in query_fields(query):
        if plain(key) == "model" and value != model:
            name = json.dumps(value) if len(value) <= MAX_KEY else '"<model>"'
            raise InvalidRequestError(f"The URL's 'model' is not read; the body says it: \"model\": {name}.", "model")


def refuse_headers(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """
    Raise RequestError for a header by which someone asks for steering.

    headers: with lower-case names, as ASGI has them
    """
    for name, _ in headers:
        if name.removeprefix(b"x-").startswith(HEADERS):
            header = shown(name[:MAX_KEY].decode("latin-1"))
            raise InvalidSteeringError(
                f"The header {header} is not read: steering is asked for in the body. {AT_TOP_LEVEL}", None
            )
