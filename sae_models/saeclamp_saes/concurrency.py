"""Coroutines that run at the same time and fail together. Used by the server too."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")


async def gather_first_error(work: Iterable[Coroutine[Any, Any, ResultT]]) -> list[ResultT]:
    """
    Run coroutines at the same time, and return their results in order.

    The first error cancels the others, waits until they have ended, and is raised alone: `asyncio.gather` would let them go
    on, and a task group raises a group. Cancelling this cancels them all.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except BaseExceptionGroup as failed:
        first = failed.exceptions[0]
    else:
        return [task.result() for task in tasks]
    raise first  # behind the handler, so that its own cause stays and the group is not shown beside it
