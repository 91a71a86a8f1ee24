"""
All that steering leans on in vLLM beyond what vLLM promises: names, signatures, attributes.

At start the installed vLLM is held against the list, so that a version in which something has moved is refused by name
before anything long begins, and not found out by a request. `tests/server/vllm_seams/test_completeness.py` holds the list
against our own code; what differs between versions that are served is in `vllm_compat.py`.
"""

from __future__ import annotations

import gc
from importlib.util import find_spec
from pathlib import Path

from saeclamp_server.vllm_seams.api import API
from saeclamp_server.vllm_seams.engine import SCHEDULER, V1_RUNNER, V2_RUNNER, WORKER
from saeclamp_server.vllm_seams.layers import LAYERS
from saeclamp_server.vllm_seams.seam import Seam, find_moved
from saeclamp_server.vllm_seams.source import Package

EVERYWHERE = (*API, *SCHEDULER, *WORKER, *LAYERS)
SEAMS: dict[str, tuple[Seam, ...]] = {"V1": (*EVERYWHERE, *V1_RUNNER), "V2": (*EVERYWHERE, *V2_RUNNER)}
"""Seams by vLLM's model runner: those of the other one may be as they like."""


def vllm_folder() -> Path:
    """Find vLLM's folder, without importing it. It must be installed."""
    spec = find_spec("vllm")
    assert spec is not None, "it was looked up before"
    assert spec.submodule_search_locations is not None, "it is a package"
    return Path(spec.submodule_search_locations[0])


def find_moved_seams(runner: str) -> list[str]:
    """Say what of the seams the installed vLLM does not have, for a model runner."""
    is_collecting = gc.isenabled()
    gc.disable()  # nothing of the many syntax trees is garbage yet, and looking takes longer than parsing
    try:
        return [*find_moved(SEAMS[runner], Package(vllm_folder()))]
    finally:
        if is_collecting:
            gc.enable()
