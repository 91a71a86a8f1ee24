"""API process: calls to the workers of all engines, and how their answers become one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

Reports: TypeAlias = dict[str, dict[str, Any]]
"""Fields of `engine.worker.steering_report.SteeringReport`, by request id; an API call with n choices has n of these."""


COUNTS = ("prompt", "generated", "prompt_sinks", "generated_sinks")
"""Fields of `steering_report.EditStat` that count positions."""


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
    """`api.model_client.DecoderQueries`, answered by the workers, which have the weights."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    async def nearest(self, sae: str, indices: Sequence[int], count: int) -> list[list[tuple[int, float]]]:
        """Find the nearest decoder rows; every worker has them all."""
        found: list[list[list[tuple[int, float]]]] = await self._engine.collective_rpc(
            "nearest_features", args=(sae, [*indices], count)
        )
        return found[0]  # every worker reads every SAE whole, so each has the same answer

    async def alignment(self, sae: str, indices: Sequence[int], token_ids: Sequence[int]) -> list[list[float]] | None:
        """Find what decoder rows add to logits; None where no worker can tell."""
        found: list[list[list[float]] | None] = await self._engine.collective_rpc(
            "logit_alignment", args=(sae, [*indices], [*token_ids])
        )
        # the unembedding is at the last pipeline stage, and one worker of a tensor-parallel group gathers the logits
        return next((rows for rows in found if rows is not None), None)


class PromptMeanClient:
    """`api.features.derive.PromptMeans`, fetched from the workers."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    async def fetch(self, keys: Sequence[str]) -> dict[str, bytes]:
        """
        Fetch recorded prompt means, (width,) fp64 as bytes, by key.

        One pipeline stage of one engine has a record, and all workers of its tensor-parallel group have it alike.
        """
        engines = await call_all_workers(self._engine, "recorded_prompt_means", [*keys])
        return {key: mean for workers in engines for worker in workers for key, mean in worker.items()}


class ReportFetcher:
    """
    Fetches the steering reports of API calls that have ended, and has the workers drop reports that nobody will fetch.

    A call to the workers waits for the step that runs, so API calls that end together, or while one is made, share the
    next one.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._one_at_a_time = asyncio.Lock()
        self._keys: list[str] = []
        """Keys of API calls that the next call to the workers asks for."""
        self._abandoned: list[str] = []
        """Keys of API calls that the next call to the workers gives up."""
        self._collected: set[str] = set()
        """Keys of API calls whose reports have been fetched, and that have not been closed."""
        self._next: asyncio.Task[list[list[dict[str, Reports]]]] | None = None
        """The call to the workers that has not begun, and takes further keys."""

    async def fetch(self, key: str) -> Reports:
        """
        Fetch the reports on the sequences of an API call, joined over pipeline stages.

        Raises what the call to the workers raises.
        """
        self._keys.append(key)
        # shielded, because other API calls wait for the same task, should this one's client go
        engines = await asyncio.shield(self._fetch_soon())
        tensor_parallel = self._engine.vllm_config.parallel_config.tensor_parallel_size
        reports: Reports = {}
        for workers in engines:
            # vLLM numbers workers stage by stage, and every worker of a tensor-parallel group makes the same edits
            stages = [worker[key] for worker in workers[::tensor_parallel]]
            reports |= {request_id: _join_stages([stage[request_id] for stage in stages]) for request_id in stages[0]}
        self._collected.add(key)
        return reports

    def close(self, key: str) -> None:
        """End an API call. If its reports were not fetched, the workers drop them, also where sequences still run."""
        if key in self._collected:
            self._collected.remove(key)
        else:
            self._abandoned.append(key)
            self._fetch_soon()

    def _fetch_soon(self) -> asyncio.Task[list[list[dict[str, Reports]]]]:
        if self._next is None:
            self._next = asyncio.create_task(self._fetch())
            # nobody awaits the task where it was started by `close`
            self._next.add_done_callback(_retrieve_exception)
        return self._next

    async def _fetch(self) -> list[list[dict[str, Reports]]]:
        async with self._one_at_a_time:
            keys, self._keys = self._keys, []
            abandoned, self._abandoned = self._abandoned, []
            # before the call, not after it: keys that come while it is made belong to the next one
            self._next = None
            return await call_all_workers(self._engine, "steering_reports", keys, abandoned)


def _retrieve_exception(task: asyncio.Task[Any]) -> None:
    """Retrieve a task's exception, so that asyncio does not complain where nobody waited: the engine may be gone by then."""
    if not task.cancelled():
        task.exception()


def _join_stages(stages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """
    Join the pipeline stages' reports on one request into one `steering_report.SteeringReport`.

    An edit is made at one stage, and a rule is evaluated at one; the other stages have counted nothing of it.
    """
    failed = next((stage for stage in stages if stage["failure"] is not None), None)
    if failed is not None:
        return failed
    return {
        "failure": None,
        "num_positions": max(stage["num_positions"] for stage in stages),
        # for a rule's edit this is a count, which is 0 at all stages but the one that made it
        "prompt": [max(counts) for counts in _by_entry(stages, "prompt")],
        "tallies": [
            max(tally, key=lambda one: sum(one[name] for name in COUNTS)) for tally in _by_entry(stages, "tallies")
        ],
        "fired": [
            next((one for one in of_stages if one is not None), None) for of_stages in _by_entry(stages, "fired")
        ],
        "unjudged": [max(counts) for counts in _by_entry(stages, "unjudged")],
    }


def _by_entry(stages: Sequence[dict[str, Any]], name: str) -> Iterator[tuple[Any, ...]]:
    return zip(*(stage[name] for stage in stages), strict=True)


def data_parallel_ranks(engine: Any) -> list[int | None]:
    """List the `data_parallel_rank` of each engine, as `generate` takes it; None for a single one."""
    num = engine.vllm_config.parallel_config.data_parallel_size
    return [None] if num == 1 else [*range(num)]
