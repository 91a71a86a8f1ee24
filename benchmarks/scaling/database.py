"""
What servers ask of the database that they share, and how many servers it carries.

The servers are simulated, without engines: each is the registries that a real one has, with its own pool of connections.
PostgreSQL, PgBouncer and the servers share this machine, so waits are upper bounds; what PostgreSQL computes is read from
its own processes.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from benchmarks.scaling.capacity import Costs, capacity
from safetensors.torch import save
from sqlalchemy import event
from sqlalchemy.engine import Engine
from tests.support.databases import pgbouncer, postgresql
from tests.support.variants import BRIDGE, FOOD, create, served

from saeclamp_server.database import Database, DatabaseError
from saeclamp_server.errors import DatabaseUnavailableError
from saeclamp_server.fleet import join_fleet
from saeclamp_server.site_norms import QuickCheckResult, SiteNorms
from saeclamp_server.variants import VariantRegistry, VariantStore
from saeclamp_server.vectors import SteeringVector, VectorStore

NUM_VARIANTS = 1000
D_SAE = 131_072
NUM_CALLS = 400
FLEETS = (10, 100, 1000, 3000)
"""Sizes of simulated fleets."""
RATE = 300
"""Look-ups a second of a whole simulated fleet."""
SECONDS = 10
CONNECTIONS = 20
"""PgBouncer's to PostgreSQL."""
THREADS = 24


class Cost(NamedTuple):
    """What one call costs."""

    statements: float
    milliseconds: float
    """Until it is answered."""
    cpu_ms: float
    """Of PostgreSQL."""


class SimulatedServer:
    """What of a server speaks to the database."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.variants = VariantRegistry(VariantStore(self.database), served(), ["tiny"])
        self.vectors = VectorStore(self.database, "tiny")

    def variant(self, name: str) -> Any:
        """Find a variant as a request that names it does."""
        return asyncio.run(self.variants.of_model(f"tiny:{name}"))


def measure() -> list[str]:
    """Return the tables' lines."""
    with tempfile.TemporaryDirectory() as files, tempfile.TemporaryDirectory() as other, postgresql(Path(files)) as url:
        costs = _costs(url, Path(files))
        with pgbouncer(url, Path(other), CONNECTIONS) as pooled:
            fleets = [line for size in FLEETS for line in _fleet(size, url, pooled)]
    lines = [
        f"PostgreSQL with its default settings, {NUM_VARIANTS:,} variants in it.",
        "",
        "| a call | statements | takes (ms) | PostgreSQL computes (ms) |",
        "|---|--:|--:|--:|",
        *(
            f"| {name} | {cost.statements:g} | {cost.milliseconds:.2f} | {cost.cpu_ms:.3f} |"
            for name, cost in costs.items()
        ),
        "",
        f"Simulated fleets, which together look {RATE} variants a second up, for {SECONDS} s; then one server is given a "
        "variant, and all are asked for it at once.",
        "",
        "| servers | to PostgreSQL | p50 (ms) | p99 | failed | opened in turn (ms each) "
        "| a new variant is everywhere after (s) | stale answers |",
        "|--:|---|--:|--:|--:|--:|--:|--:|",
        *fleets,
        "",
        *capacity(
            Costs(
                variant=costs["a variant by its name"].cpu_ms,
                vector=costs["a vector by its name"].cpu_ms,
                ready=costs["/ready"].cpu_ms,
                models=costs["/v1/models"].cpu_ms,
                join_ms=costs["a server joins its fleet (one SAE of 131,072 features)"].milliseconds,
                load_ms=costs["a server reads a vector of 4,096 numbers"].cpu_ms,
            )
        ),
    ]
    return lines


def _costs(url: str, folder: Path) -> dict[str, Cost]:
    """What each kind of call costs, asked by one server."""
    one = SimulatedServer(url)
    for number in range(NUM_VARIANTS):
        create(one.variants, f"chef-{number}", BRIDGE if number % 2 else FOOD)
    create(one.variants, "cook", BRIDGE, alias="the-cook")
    for name, width in (("small", 4096), ("large", 1_000_000)):
        one.vectors.create(name, _vector(width), 8)
    measured = {"big": QuickCheckResult(SiteNorms(10.0, np.random.default_rng(0).random(D_SAE).tolist()), None)}
    join_fleet(one.database, "f", {"the model": "m"}, measured)
    chance, count = random.Random(0), iter(range(10**6))
    calls: dict[str, tuple[Callable[[], Any], int]] = {
        "steered without a variant or vector": (lambda: None, 1),
        "a variant by its name": (lambda: one.variant(f"chef-{chance.randrange(NUM_VARIANTS)}"), NUM_CALLS),
        "a variant by its alias": (lambda: asyncio.run(one.variants.of_model("the-cook")), NUM_CALLS),
        "a vector by its name": (lambda: one.vectors.hashes(["small"]), NUM_CALLS),
        "/ready": (one.database.check, NUM_CALLS),
        "/v1/models": (lambda: asyncio.run(one.variants.listed()), 40),
        "a variant is made": (lambda: create(one.variants, f"new-{next(count)}", BRIDGE), 100),
        "a vector of 4,096 numbers is kept": (
            lambda: one.vectors.create(f"v-{next(count)}", _vector(4096), 10**6),
            100,
        ),
        "a server reads a vector of 4,096 numbers": (lambda: one.vectors.read("small"), NUM_CALLS),
        "a server reads a vector of 4 MB": (lambda: one.vectors.read("large"), 40),
        f"a server joins its fleet (one SAE of {D_SAE:,} features)": (
            lambda: join_fleet(one.database, "f", {"the model": "m"}, measured),
            20,
        ),
    }
    return {name: _cost(call, times, folder) for name, (call, times) in calls.items()}


def _vector(width: int) -> SteeringVector:
    said = {"layer": "3", "site": "resid_post", "sign": "+1", "source": "drawn"}
    return SteeringVector.parse(save({"v": torch.randn(width)}, metadata=said))


def _cost(call: Callable[[], Any], times: int, folder: Path) -> Cost:
    statements = 0

    def counted(*_: Any) -> None:
        nonlocal statements
        statements += 1

    call()
    event.listen(Engine, "before_cursor_execute", counted)
    try:
        before, began = _computed(folder), time.perf_counter()
        for _ in range(times):
            call()
        seconds, computed = time.perf_counter() - began, _computed(folder) - before
    finally:
        event.remove(Engine, "before_cursor_execute", counted)
    return Cost(statements / times, seconds / times * 1000, computed / times * 1000)


def _computed(folder: Path) -> float:
    """Seconds that the processes of the PostgreSQL with these files have computed."""
    (first,) = [one for one in psutil.process_iter(["name", "cmdline"]) if str(folder) in (one.info["cmdline"] or [])]
    return sum(sum(process.cpu_times()[:2]) for process in (first, *first.children()))


def _fleet(size: int, url: str, pooled: str) -> list[str]:
    lines = []
    for name, address in (("directly", url), (f"PgBouncer, {CONNECTIONS}", pooled)):
        if size > 100 and address == url:
            continue  # the 100th server's connection is refused; it is seen there
        print(f"{size} servers, {name}", file=sys.stderr, flush=True)
        lines.append(f"| {size:,} | {name} | {' | '.join(_asked(size, address))} |")
    return lines


def _asked(size: int, url: str) -> Sequence[str]:
    began = time.perf_counter()
    servers, refused = [], 0
    for _ in range(size):
        try:
            servers.append(SimulatedServer(url))
        except DatabaseError:
            refused += 1
    opened = (time.perf_counter() - began) / size * 1000
    waits: list[float] = []
    ended: Counter[str] = Counter()
    chance, lock, end = random.Random(size), threading.Lock(), time.monotonic() + SECONDS

    def ask(_: int) -> None:
        while time.monotonic() < end:
            with lock:
                server, name = chance.choice(servers), f"chef-{chance.randrange(NUM_VARIANTS)}"
            begun = time.perf_counter()
            try:
                found = server.variant(name) is not None
                ended["found" if found else "lost"] += 1
            except DatabaseUnavailableError:
                ended["failed"] += 1
            waits.append(time.perf_counter() - begun)
            time.sleep(max(0.0, THREADS / RATE - waits[-1]))

    def has(server: SimulatedServer) -> str:
        try:
            found = server.variant("changing")
        except DatabaseUnavailableError:
            return "failed"
        return "right" if found is not None and found.to_wire().version == made.version else "stale"

    with ThreadPoolExecutor(THREADS) as pool:
        [*pool.map(ask, range(THREADS))]
        made, _ = create(servers[0].variants, "changing", random.choice((BRIDGE, FOOD)), description=f"{size} {url}")
        begun = time.perf_counter()
        heard = Counter(pool.map(has, servers))
        spread = time.perf_counter() - begun
    for server in servers:
        server.database.close()
    cuts = statistics.quantiles(waits, n=100)
    failed = f"{ended['failed'] + ended['lost']} of {len(waits)}" + (f", {refused} not opened" if refused else "")
    return (
        f"{cuts[49] * 1000:.1f}",
        f"{cuts[98] * 1000:.1f}",
        failed,
        f"{opened:.0f}",
        f"{spread:.2f}" + (f" ({heard['failed']} failed)" if heard["failed"] else ""),
        str(heard["stale"]),
    )
