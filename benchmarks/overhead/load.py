"""Simultaneous streamed requests to a server, and when their tokens arrived."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httpx
from tests.support.serving import Server

PROMPT = "Write a long story about a sailor who comes home after many years and finds that the harbour has changed."

Steering = Callable[[int], dict[str, Any] | None]
"""What the request with a number asks for; None: no steering."""


def prompt(number: int) -> str:
    """Differs from that of any other request, and has as many tokens."""
    return f"{PROMPT} Chapter {number:03d}:"


@dataclass(frozen=True)
class Run:
    """What became of some simultaneous requests."""

    num_tokens: int
    """Of all answers."""
    seconds: float
    """Until the last was answered."""
    gaps: list[float] = field(default_factory=list)
    """Seconds between a request's tokens, of all requests; empty where single tokens are not seen."""

    @property
    def speed(self) -> float:
        """Tokens/s."""
        return self.num_tokens / self.seconds


async def run(server: Server, batch: int, num_tokens: int, steering: Steering) -> Run:
    """
    Stream `batch` answers of `num_tokens` each.

    Raises RuntimeError for one that is not what was asked for.
    """
    limits = httpx.Limits(max_connections=batch)
    async with httpx.AsyncClient(base_url=server.url, timeout=600, limits=limits) as client:
        started = time.perf_counter()
        arrivals = await asyncio.gather(
            *(_stream(client, server.model, number, num_tokens, steering(number)) for number in range(batch))
        )
        seconds = time.perf_counter() - started
    return Run(batch * num_tokens, seconds, [later - at for times in arrivals for at, later in pairwise(times)])


async def _stream(
    client: httpx.AsyncClient, model: str, number: int, num_tokens: int, steering: dict[str, Any] | None
) -> list[float]:
    body: dict[str, Any] = {
        "model": model,
        "prompt": prompt(number),
        "max_tokens": num_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    arrivals, last = [], ""
    async with client.stream(
        "POST", "/v1/completions", json=body | ({"steering": steering} if steering else {})
    ) as response:
        if response.status_code != 200:
            raise RuntimeError(f"refused: {(await response.aread()).decode()}")
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                arrivals.append(time.perf_counter())
                last = line
    end = json.loads(last.removeprefix("data: "))
    if end["usage"]["completion_tokens"] != num_tokens or ("steering" in end) != (steering is not None):
        raise RuntimeError(f"not the answer that was asked for: {last}")
    return arrivals[:-1]  # the last brings no token, but the usage
