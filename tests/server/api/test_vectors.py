"""The endpoints of uploaded vectors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from tests.support.vector_files import file, held, numbers

from saeclamp_server.api import vectors as routes
from saeclamp_server.api.error_handlers import refuse
from saeclamp_server.database import Database
from saeclamp_server.errors import RequestError
from saeclamp_server.vectors import MAX_BYTES, VectorStore

OTHER = file(numbers(1))


class Api:
    """The endpoints alone."""

    def __init__(self, database: Database) -> None:
        app = FastAPI()
        app.include_router(routes.router)
        app.add_exception_handler(RequestError, refuse)
        app.state.saeclamp = SimpleNamespace(vectors=held(database))
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")

    async def upload(self, query: str, content: Any, kind: str = routes.CONTENT_TYPE) -> tuple[int, Any]:
        response = await self.http.post(f"/v1/vectors{query}", content=content, headers={"content-type": kind})
        return response.status_code, response.json()


def test_the_endpoints_answer_in_openais_envelope(database: Database) -> None:
    async def steps() -> None:
        api = Api(database)
        assert (await api.upload("?name=a", file()))[0] == 201
        status, known = await api.upload("?name=a", file())
        assert (status, known["object"], known["name"]) == (200, "vector", "a")
        assert (await api.http.get("/v1/vectors/a")).json() == known
        listed = (await api.http.get("/v1/vectors")).json()
        assert listed == {
            "object": "list",
            "data": [known],
            "sites": ["resid_post 3", "resid_mid 5"],
            "max_vectors": 2,
        }
        for response in (await api.http.get("/v1/vectors/b"), await api.http.delete("/v1/vectors/b")):
            assert response.status_code == 404
            assert response.json()["error"]["code"] == "unknown_vector"
            assert "Uploaded: a." in response.json()["error"]["message"]
        assert (await api.http.delete("/v1/vectors/a")).json() == {"object": "vector", "name": "a", "deleted": True}
        assert (await api.http.get("/v1/vectors")).json()["data"] == []

    asyncio.run(steps())


@pytest.mark.parametrize(
    ("query", "kind", "size", "status", "param"),
    [
        ("", routes.CONTENT_TYPE, 0, 400, "name"),
        ("?name=a&name=b", routes.CONTENT_TYPE, 0, 400, "name"),
        ("?name=a&overwrite=true", routes.CONTENT_TYPE, 0, 400, "name"),
        ("?name=a%2Fb", routes.CONTENT_TYPE, 0, 400, "name"),
        ("?name=a", "application/x-www-form-urlencoded", 0, 400, "content-type"),
        ("?name=a", "application/json", 0, 400, "content-type"),
        ("?name=a", routes.CONTENT_TYPE, MAX_BYTES + 1, 413, "body"),
    ],
)
def test_an_upload_that_is_malformed_is_refused(
    database: Database, query: str, kind: str, size: int, status: int, param: str
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, size, 1 << 20):
            yield b"\0" * min(1 << 20, size - start)

    async def steps() -> None:
        found, body = await Api(database).upload(query, pieces() if size else file(), kind)
        assert found == status
        assert (body["error"]["param"], body["error"]["code"]) == (param, "invalid_vector")

    asyncio.run(steps())
    assert not VectorStore(database, "tiny").hashes()
