"""Calls to the workers of every process of the engine, and what becomes of their answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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


class EngineDirections:
    """`model.Directions`, asked of the workers."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    async def nearest(self, sae: str, indices: Sequence[int], count: int) -> list[list[tuple[int, float]]]:
        """Find the nearest decoder rows; every worker has them all."""
        found: list[list[list[tuple[int, float]]]] = await self._engine.collective_rpc(
            "nearest_features", args=(sae, [*indices], count)
        )
        return found[0]

    async def alignment(self, sae: str, indices: Sequence[int], token_ids: Sequence[int]) -> list[list[float]] | None:
        """Find what decoder rows add to logits, from the worker that has these."""
        found: list[list[list[float]] | None] = await self._engine.collective_rpc(
            "logit_alignment", args=(sae, [*indices], [*token_ids])
        )
        return next((rows for rows in found if rows is not None), None)


async def steering_reports(engine: Any, key: str) -> Mapping[str, dict[str, Any]]:
    """Fetch the reports on the sequences of an API call, by request id, as if one process had run them."""
    reports: dict[str, dict[str, Any]] = {}
    tensor_parallel = engine.vllm_config.parallel_config.tensor_parallel_size
    for workers in await on_workers(engine, "steering_reports", key):
        # every worker of a tensor-parallel group makes the same edits
        stages: list[dict[str, dict[str, Any]]] = workers[::tensor_parallel]
        reports |= {request_id: _joined([stage[request_id] for stage in stages]) for request_id in stages[0]}
    return reports


def _joined(stages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """
    Join what the pipeline stages report of a request, as in `live.Report`.

    An edit is made at one stage, and a rule is judged at one; the others have nothing of it.
    """
    failed = next((stage for stage in stages if stage["failure"] is not None), None)
    if failed is not None:
        return failed
    return {
        "failure": None,
        # of a rule's edit it is what was counted, where it was made
        "prompt": [max(counts) for counts in _by_entry(stages, "prompt")],
        "tallies": [
            max(tally, key=lambda one: one["prompt"] + one["generated"]) for tally in _by_entry(stages, "tallies")
        ],
        "fired": [next((one for one in held if one is not None), None) for held in _by_entry(stages, "fired")],
    }


def _by_entry(stages: Sequence[dict[str, Any]], name: str) -> Iterator[tuple[Any, ...]]:
    return zip(*(stage[name] for stage in stages), strict=True)


def data_parallel_ranks(engine: Any) -> list[int | None]:
    """Name each data-parallel engine as `generate` takes it; a single one has no name."""
    num = engine.vllm_config.parallel_config.data_parallel_size
    return [None] if num == 1 else [*range(num)]
