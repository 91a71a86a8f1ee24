"""What was asked for on the command line of `serve`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MAX_VECTORS = 256
"""A site. Their rows are allocated at the start: at width 4096, 8 MB a site."""


DEFAULT_HOST = "127.0.0.1"
"""vLLM listens on every interface by default; a server without a key should not."""

DRAIN_S = 30.0

MAX_FEATURES = 4096
MAX_WAITING = 256

MAX_BODY = 16
"""Megabytes. While a body is parsed and checked, nobody else is answered."""


@dataclass(frozen=True)
class ServeOptions:
    """What was asked for on the command line."""

    model: str
    saes: tuple[str, ...]
    vllm_argv: tuple[str, ...]
    """Passed to vLLM's own parser."""
    allow_unverified: bool = False
    """Whether to serve SAEs that do not reconstruct what the model has where they claim to sit."""
    max_dose: float | None = None
    """Longest edit of a token that a request may ask for, in median lengths of the stream; None for `dose.MAX_DOSE`."""
    vector_sites: tuple[str, ...] = ()
    """Where uploaded vectors can sit besides the sites of the SAEs."""
    max_vectors: int = MAX_VECTORS
    """How many each site holds."""
    max_features: int = MAX_FEATURES
    """How many distinct features may be in use at once."""
    max_waiting: int = MAX_WAITING
    """How many requests may wait for features."""
    max_body: int = MAX_BODY
    """Megabytes of the largest body that vLLM's endpoints are given."""
    offload_saes: bool = False
    """Whether SAEs stay in the host's memory, and only the features in use are on the model's device."""
    vectors: Path | None = None
    """Where uploaded vectors are kept; None for a folder of the model in the cache."""
    drain_s: float = DRAIN_S
    """How long running requests may take to end when the server is told to stop."""
    verbose: bool = False
    """Whether vLLM's log is to be seen in the terminal."""
    variants: str | None = None
    """URL of the database of variants; None for a SQLite file among the user's data."""
    trace: Path | None = None
    """To which file a line is written for each steered request; None for none."""
