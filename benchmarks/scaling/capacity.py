"""How many servers one database carries, reckoned from what single calls cost it: which part gives way first, and when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from saeclamp_server.database.connection import POOL

REQUESTS_S = 20
"""Requests a second of one server: a model of 8 billion parameters on one GPU, with answers of 200 tokens."""
PROBE_S = 5
"""Seconds between two readiness probes of a server."""
LISTED_S = 10
"""Seconds between two looks of a router or page at a server's `/v1/models`."""
CONNECTIONS = 97
"""PostgreSQL's 100 by default, without those kept for superusers."""
SIZES = (10, 100, 1000, 10_000)
USABLE = 0.7
"""Share of a core up to which waits stay short."""


class Costs(NamedTuple):
    """What PostgreSQL computes for one call (ms), and how long a server takes to join its fleet (ms)."""

    variant: float
    vector: float
    ready: float
    models: float
    join_ms: float
    load_ms: float


def capacity(costs: Costs) -> list[str]:
    """Return the lines of the table of what gives way."""
    probe = costs.ready / PROBE_S
    loads = {
        "requests without variants and vectors": probe,
        "half of the requests name a variant": probe + REQUESTS_S * 0.5 * costs.variant,
        "each names a variant": probe + REQUESTS_S * costs.variant,
        "each names a variant that moves a vector": probe + REQUESTS_S * (costs.variant + costs.vector),
        "the last, and a router lists models at each server": (
            probe + REQUESTS_S * (costs.variant + costs.vector) + costs.models / LISTED_S
        ),
    }
    at_most = POOL["pool_size"] + POOL["max_overflow"]
    sizes = ", ".join(f"{size:,}" for size in SIZES)
    return [
        f"Reckoned from these: servers with {REQUESTS_S} requests a second each, probed every {PROBE_S} s; one core of "
        f"PostgreSQL, of which {USABLE:.0%} may be used.",
        "",
        f"| what servers are asked | cores of PostgreSQL at {sizes} servers | one core carries |",
        "|---|---|--:|",
        *(_row(name, ms_per_s) for name, ms_per_s in loads.items()),
        "",
        "| what else grows | at 1,000 servers |",
        "|---|---|",
        f"| connections without a pooler: {POOL['pool_size']} kept by each server, {at_most} at most | "
        f"{1000 * POOL['pool_size']:,} to {1000 * at_most:,} of {CONNECTIONS}: the first to give way, at "
        f"{CONNECTIONS // at_most} to {CONNECTIONS // POOL['pool_size']} servers |",
        f"| all start at once: they join one after the other | {costs.join_ms:.0f} s |",
        f"| all are asked for a new vector of 4,096 numbers at once | {costs.load_ms:.1f} s of one core, once |",
    ]


def _row(name: str, ms_per_s: float) -> str:
    cores: Sequence[str] = [f"{size * ms_per_s / 1000:.2g}" for size in SIZES]
    return f"| {name} | {', '.join(cores)} | {int(USABLE * 1000 / ms_per_s):,} servers |"
