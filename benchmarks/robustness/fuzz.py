"""
Random requests, most of them broken.

None that asked for steering may be answered unsteered, none may end in an error of ours, and plain requests between them say
what they said before.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from typing import Any

import httpx
from benchmarks.robustness.bodies import TAKES_STEERING, draw, mutated
from benchmarks.robustness.server import Watch
from tests.support.serving import Server

NUM_AT_ONCE = 16
PLAIN = {"model": "tiny", "prompt": "the old miller and his sons", "max_tokens": 6, "temperature": 0, "logprobs": 2}
LOOKALIKES = ("steer", "variant", "interventions", "feature")
EVERY = 250
"""Requests after which a plain one is compared, and the processes are looked at."""


class Findings:
    """What was answered, and what must not be."""

    def __init__(self) -> None:
        self.answers: Counter[str] = Counter()
        self.bad: list[str] = []

    def check(self, path: str, content: bytes, response: httpx.Response) -> None:
        """Judge an answer."""
        self.answers[f"{path.partition('?')[0]} {response.status_code}"] += 1
        what = f"{path} {response.status_code} {content[:600]!r} -> {response.content[:400]!r}"
        if response.status_code >= 500:
            self.bad.append(f"5xx: {what}")
        elif response.status_code >= 400:
            if not _error(response):
                self.bad.append(f"no envelope: {what}")
        elif path in TAKES_STEERING and _asks(content) and not _is_steered(response):
            self.bad.append(f"unsteered: {what}")


def _error(response: httpx.Response) -> Any:
    try:
        return response.json()["error"]["message"]
    except (ValueError, LookupError, TypeError):
        return None


def _asks(content: bytes) -> bool:
    """Whether a body that was accepted asks for steering: by the key, or in a way that somebody could take for right."""
    body = json.loads(content)
    return body.get("steering") is not None or any(body.get(key) for key in LOOKALIKES)


def _is_steered(response: httpx.Response) -> bool:
    """Whether an answer carries a receipt, or an error in its place."""
    if response.headers.get("content-type", "").startswith("text/event-stream"):
        return any(mark in response.text for mark in ('"applied": true', '"applied":true', '"error"'))
    return (response.json().get("steering") or {}).get("applied") is True


async def fuzz(server: Server, num: int, seed: int) -> tuple[Findings, Watch]:
    """Send `num` requests, and a plain one now and then."""
    findings, watch, chance = Findings(), Watch(server.pid or 0), random.Random(seed)
    limits = httpx.Limits(max_connections=NUM_AT_ONCE)
    async with httpx.AsyncClient(base_url=server.url, timeout=300, limits=limits) as http:
        expected = await _plain(http)
        for done in range(0, num, EVERY):
            await asyncio.gather(*(_one(http, chance, findings) for _ in range(min(EVERY, num - done))))
            if await _plain(http) != expected:
                findings.bad.append(f"after {done + EVERY} requests a plain one says something else")
            watch.look(done + EVERY)
            print(f"{done + EVERY} requests, {len(findings.bad)} findings", flush=True)
    return findings, watch


async def _plain(http: httpx.AsyncClient) -> Any:
    answer = await http.post("/v1/completions", json=PLAIN)
    return answer.json()["choices"][0]["text"] if answer.status_code == 200 else answer.text


async def _one(http: httpx.AsyncClient, chance: random.Random, findings: Findings) -> None:
    path, body = draw(chance)
    is_whole = chance.random() < 0.2
    content = json.dumps(body).encode() if is_whole else mutated(body, chance)
    response = await http.post(path, content=content, headers={"content-type": "application/json"})
    findings.check(path, content, response)
