"""Calls to the workers of every process of the engine, and what becomes of their answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


async def on_workers(engine: Any, method: str, *args: Any) -> list[list[Any]]:
    """
    Call a worker's method on all workers of all data-parallel engines; return each engine's list of results.

    `engine.collective_rpc` calls all of them too, but returns what the first engine's workers said, and no more.
    """
    results: list[list[Any]] = await engine.engine_core.call_utility_all_async(
        "collective_rpc", method, None, args, None
    )
    return results


async def steering_reports(engine: Any, key: str) -> Mapping[str, dict[str, Any]]:
    """Fetch the reports on the sequences of an API call, by request id, as if one process had run them."""
    reports: dict[str, dict[str, Any]] = {}
    for workers in await on_workers(engine, "steering_reports", key):
        # every worker of a tensor-parallel group makes the same edits
        reports |= workers[0]
    return reports


def data_parallel_ranks(engine: Any) -> list[int | None]:
    """Name each data-parallel engine as `generate` takes it; a single one has no name."""
    num = engine.vllm_config.parallel_config.data_parallel_size
    return [None] if num == 1 else [*range(num)]
