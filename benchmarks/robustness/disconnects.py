"""Clients that leave in the middle of large steered requests: what they leave behind must not grow."""

from __future__ import annotations

import asyncio
import random
import re
from contextlib import suppress
from typing import Any

import httpx
from benchmarks.robustness.server import Watch
from tests.support.serving import Server

NUM_AT_ONCE = 32
EVERY = 250
EARLY = 0.9
"""Share of the clients that leave while the engine reads their prompt, or before."""
PROMPT_TOKENS = re.compile(r"^vllm:prompt_tokens_total\{[^}]*\} (\S+)$", re.MULTILINE)
PROMPT = "the old miller and his three sons lived near a river " * 20


def large(chance: random.Random) -> dict[str, Any]:
    """Draw a request as large as they may be: 16 rules of 16 comparisons, looked at at 1,000 positions."""
    positions = {"positions": [*range(1, 2001, 2)][:1000]}

    def test() -> dict[str, Any]:
        return {"feature": f"sae0/{chance.randrange(64)}", "above": chance.uniform(0, 9), "unit": "act"}

    rules = [
        {
            "name": f"r{number}",
            "when": {"any": [test() for _ in range(16)]},
            "then": [{"op": "add", "feature": f"sae1/{number}", "value": 0.1, "unit": "act"}],
            "tokens": positions,
        }
        for number in range(16)
    ]
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 400, "ignore_eos": True, "steering": {"rules": rules}}
    return body


async def disconnects(server: Server, num: int, seed: int) -> tuple[Watch, int]:
    """
    Begin `num` requests and leave them, most after up to half a second, the others after some chunks; let one be answered.

    returns: what the server took, and how many of the requests the engine had begun to answer when their clients left
    """
    watch, chance = Watch(server.pid or 0), random.Random(seed)
    watch.look(0)
    async with httpx.AsyncClient(base_url=server.url, timeout=300) as http:
        for done in range(0, num, EVERY):
            gate = asyncio.Semaphore(NUM_AT_ONCE)
            await asyncio.gather(*(_leave(http, chance, gate) for _ in range(min(EVERY, num - done))))
            await asyncio.sleep(1)
            watch.look(min(done + EVERY, num))
        answer = await http.post("/v1/completions", json=large(chance) | {"max_tokens": 4})
        answer.raise_for_status()
        metrics = (await http.get("/metrics")).text
    # counted with a request's first token; all prompts are the same
    num_read = sum(float(number) for number in PROMPT_TOKENS.findall(metrics))
    return watch, round(num_read / answer.json()["usage"]["prompt_tokens"]) - 1


async def _leave(http: httpx.AsyncClient, chance: random.Random, gate: asyncio.Semaphore) -> None:
    async with gate:
        with suppress(httpx.TimeoutException, httpx.TransportError, TimeoutError):
            if chance.random() < EARLY:
                async with asyncio.timeout(chance.uniform(0.01, 0.5)):
                    await http.post("/v1/completions", json=large(chance) | {"stream": chance.random() < 0.5})
            else:
                await _read(http, large(chance) | {"stream": True}, chance.randrange(1, 20))


async def _read(http: httpx.AsyncClient, body: dict[str, Any], num_chunks: int) -> None:
    async with http.stream("POST", "/v1/completions", json=body) as response:
        async for line in response.aiter_lines():
            num_chunks -= line != ""
            if num_chunks <= 0:
                return
