"""API process: calls to the workers of every process of the engine, and what becomes of their answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

Reports: TypeAlias = dict[str, dict[str, Any]]
"""Of sequences, by request id: the fields of `engine.worker.request_states.SteeringReport`."""


async def call_all_workers(engine: Any, method: str, *args: Any) -> list[list[Any]]:
    """
    Call a worker's method on all workers of all data-parallel engines; return each engine's list of results.

    `engine.collective_rpc` calls all of them too, but returns what the first engine's workers said, and no more.
    """
    results: list[list[Any]] = await engine.engine_core.call_utility_all_async(
        "collective_rpc", method, None, args, None
    )
    return results


class DecoderQueryClient:
    """`model_client.Directions`, asked of the workers."""

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


class PromptMeanClient:
    """`features.derive.Streams`, asked of the workers."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    async def fetch(self, keys: Sequence[str]) -> dict[str, bytes]:
        """Fetch what was recorded; one stage of one engine has it, all workers of a tensor-parallel group alike."""
        engines = await call_all_workers(self._engine, "recorded_prompt_means", [*keys])
        return {key: mean for workers in engines for worker in workers for key, mean in worker.items()}


class ReportFetcher:
    """
    Fetches what the engine reports on calls that have ended, and has forgotten what nobody will ask for.

    A call to the workers waits for the step that runs, so calls that end together, or while one is made, share the next one.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._one_at_a_time = asyncio.Lock()
        self._keys: list[str] = []
        """Of the fetch that has not begun."""
        self._abandoned: list[str] = []
        """Likewise."""
        self._collected: set[str] = set()
        self._next: asyncio.Task[list[list[dict[str, Reports]]]] | None = None

    async def fetch(self, key: str) -> Reports:
        """
        Fetch the reports on the sequences of an API call, as if one process had run them.

        Raises what the call to the workers raises.
        """
        self._keys.append(key)
        engines = await asyncio.shield(self._fetch_soon())  # others wait for it too, should this call's client go
        tensor_parallel = self._engine.vllm_config.parallel_config.tensor_parallel_size
        reports: Reports = {}
        for workers in engines:
            # every worker of a tensor-parallel group makes the same edits
            stages = [worker[key] for worker in workers[::tensor_parallel]]
            reports |= {request_id: _join_stages([stage[request_id] for stage in stages]) for request_id in stages[0]}
        self._collected.add(key)
        return reports

    def close(self, key: str) -> None:
        """End a call. If its reports were not fetched, the engine forgets them, also where sequences still run."""
        if key in self._collected:
            self._collected.remove(key)
        else:
            self._abandoned.append(key)
            self._fetch_soon()

    def _fetch_soon(self) -> asyncio.Task[list[list[dict[str, Reports]]]]:
        if self._next is None:
            self._next = asyncio.create_task(self._fetch())
            self._next.add_done_callback(_retrieve_exception)
        return self._next

    async def _fetch(self) -> list[list[dict[str, Reports]]]:
        async with self._one_at_a_time:
            keys, self._keys = self._keys, []
            abandoned, self._abandoned = self._abandoned, []
            self._next = None
            return await call_all_workers(self._engine, "steering_reports", keys, abandoned)


def _retrieve_exception(task: asyncio.Task[Any]) -> None:
    """Look at how a task ended, so that asyncio does not complain where nobody waited: the engine may be gone by then."""
    if not task.cancelled():
        task.exception()


def _join_stages(stages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """
    Join what the pipeline stages report of a request, as in `request_states.SteeringReport`.

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
        "fired": [next((one for one in loaded if one is not None), None) for loaded in _by_entry(stages, "fired")],
    }


def _by_entry(stages: Sequence[dict[str, Any]], name: str) -> Iterator[tuple[Any, ...]]:
    return zip(*(stage[name] for stage in stages), strict=True)


def data_parallel_ranks(engine: Any) -> list[int | None]:
    """Name each data-parallel engine as `generate` takes it; a single one has no name."""
    num = engine.vllm_config.parallel_config.data_parallel_size
    return [None] if num == 1 else [*range(num)]
