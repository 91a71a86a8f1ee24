"""All kinds of requests at once, more than a server can answer, for minutes: it stays as large as it was."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter

import httpx
from benchmarks.robustness.bodies import draw
from benchmarks.robustness.fuzz import Findings
from benchmarks.robustness.server import Watch
from tests.support.serving import Server

NUM_AT_ONCE = 48
EVERY_S = 10


async def soak(server: Server, seconds: float, seed: int) -> tuple[Findings, Watch, Counter[str]]:
    """Keep a server busy, and look at its processes."""
    findings, watch, errors, end = Findings(), Watch(server.pid or 0), Counter[str](), time.monotonic() + seconds
    watch.look(0)

    async def client(number: int) -> None:
        chance = random.Random(1000 * seed + number)
        while time.monotonic() < end:
            path, body = draw(chance)
            try:
                if chance.random() < 0.05:
                    async with asyncio.timeout(chance.uniform(0.01, 1)):
                        await http.post(path, json=body)
                else:
                    response = await http.post(path, json=body)
                    findings.check(path, response.request.content, response)
            except TimeoutError:
                errors["left early"] += 1
            except httpx.TransportError as exc:
                errors[type(exc).__name__] += 1

    async def look() -> None:
        while time.monotonic() < end:
            await asyncio.sleep(EVERY_S)
            watch.look(findings.answers.total())

    async with httpx.AsyncClient(base_url=server.url, timeout=300, limits=httpx.Limits(max_connections=None)) as http:
        await asyncio.gather(look(), *(client(number) for number in range(NUM_AT_ONCE)))
    return findings, watch, errors
