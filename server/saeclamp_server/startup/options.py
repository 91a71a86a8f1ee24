"""Options of the command line of `serve`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MAX_VECTORS = 256
"""Vectors of a site. Their rows are allocated at the start: at width 4096, 8 MB a site."""


DEFAULT_HOST = "127.0.0.1"
"""vLLM listens on every interface by default; a server without a key should not."""

MAX_PORT = (1 << 16) - 1

DRAIN_S = 30.0

MAX_FEATURES = 4096
MAX_WAITING = 256

MAX_BODY = 16
"""Megabytes. While a body is parsed and checked, nobody else is answered."""


@dataclass(frozen=True)
class ServeOptions:
    """Options of the command line, as its parser has read them."""

    model: str
    saes: tuple[str, ...]
    vllm_argv: tuple[str, ...]
    """Arguments for vLLM's own parser."""
    allow_unverified: bool = False
    """True to serve SAEs that do not reconstruct what the model has where they claim to sit."""
    max_dose: float | None = None
    """Largest dose of a token that a request may ask for, in median norms of the stream; None for `dose.MAX_DOSE`."""
    vector_sites: tuple[str, ...] = ()
    """Sites at which uploaded vectors can sit besides those of the SAEs."""
    max_vectors: int = MAX_VECTORS
    """Vectors that each site holds."""
    max_features: int = MAX_FEATURES
    """Distinct features that may be in use at once."""
    max_waiting: int = MAX_WAITING
    """Requests that may wait for features."""
    max_body: int = MAX_BODY
    """Megabytes of the largest body that vLLM's endpoints are given."""
    offload_saes: bool = False
    """True to keep SAEs in the host's memory, so that only the features in use are on the model's device."""
    vectors: Path | None = None
    """Folder of vectors that the database is to take over; None for a folder of the model in the cache."""
    drain_s: float = DRAIN_S
    """Seconds that running requests may take to end when the server is told to stop."""
    playground: bool = True
    """True to serve the page at `/playground/`."""
    verbose: bool = False
    """True to show vLLM's log in the terminal."""
    variants: str | None = None
    """URL of the database of variants and vectors; None for a SQLite file among the user's data."""
    fleet: str | None = None
    """Name of the fleet that the server belongs to; None for none."""
    replica: str | None = None
    """Name of this server in receipts; None for that of the machine."""
    metrics_port: int | None = None
    """Port of a `/metrics` of its own, without a key; None for none."""
    trace: Path | None = None
    """File to which a line is written for each steered request; None for none."""
