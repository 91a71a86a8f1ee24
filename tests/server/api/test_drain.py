"""Requests that run are answered, those that come too late are refused, and those who watch the server are told."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import httpx
from fastapi import FastAPI

from saeclamp_server.api import drain
from saeclamp_server.api.drain import Drain, DrainGuard


class Served:
    """A server with one endpoint, which answers when it is told to."""

    def __init__(self) -> None:
        self.drain = Drain()
        self.may_answer = asyncio.Event()
        app = FastAPI()
        app.include_router(drain.router)
        self.engine = SimpleNamespace(errored=False)
        self.database = SimpleNamespace(is_up=True)
        app.state.saeclamp = SimpleNamespace(
            drain=self.drain,
            vllm=SimpleNamespace(engine_client=self.engine),
            database=self.database,
        )
        app.add_middleware(DrainGuard, drain=self.drain)
        app.add_api_route("/slow", self._slow)
        app.add_api_route("/fails", self._fails)
        app.add_api_route("/metrics", lambda: "figures")
        self.app = app
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://test"
        )

    async def _slow(self) -> str:
        await self.may_answer.wait()
        return "done"

    async def _fails(self) -> None:
        raise RuntimeError("broken")


def test_what_runs_is_answered_and_what_comes_after_the_signal_is_refused() -> None:
    async def go() -> None:
        served = Served()
        assert (await served.http.get("/ready")).status_code == 200
        running = [asyncio.create_task(served.http.get("/slow")) for _ in range(3)]
        while served.drain.num_running < 3:
            await asyncio.sleep(0)
        served.drain.begin()

        ready = await served.http.get("/ready")
        assert (ready.status_code, ready.headers["Retry-After"]) == (503, "5")
        assert ready.json()["error"]["code"] == "server_stopping"
        assert (await served.http.get("/metrics")).status_code == 200
        late = await served.http.get("/slow")
        assert (late.status_code, late.headers["Retry-After"], late.headers["Connection"]) == (503, "5", "close")
        assert late.json()["error"] == {
            "message": "The server is stopping: it finishes the requests it has, and takes no more.",
            "type": "server_error",
            "param": None,
            "code": "server_stopping",
        }

        assert not await served.drain.wait(0.05), "three still run"
        served.may_answer.set()
        assert await served.drain.wait(5)
        assert [(await one).json() for one in running] == ["done"] * 3

    asyncio.run(go())


def test_a_request_that_fails_or_whose_client_goes_is_no_longer_counted() -> None:
    async def go() -> None:
        served = Served()
        assert (await served.http.get("/fails")).status_code == 500
        gone = asyncio.create_task(served.http.get("/slow"))
        while not served.drain.num_running:
            await asyncio.sleep(0)
        gone.cancel()
        assert await served.drain.wait(5)
        assert served.drain.num_running == 0

    asyncio.run(go())


def test_a_server_whose_engine_has_died_is_not_ready() -> None:
    async def go() -> None:
        served = Served()
        served.engine.errored = True
        answer = await served.http.get("/ready")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_gone")

    asyncio.run(go())


def test_a_server_without_its_database_is_ready_for_what_needs_none_and_says_so() -> None:
    async def go() -> None:
        served = Served()
        assert (await served.http.get("/ready")).json() == {"status": "ready", "database": "ok"}
        served.database.is_up = False
        answer = await served.http.get("/ready")
        assert (answer.status_code, answer.json()) == (200, {"status": "ready", "database": "unavailable"})

    asyncio.run(go())
