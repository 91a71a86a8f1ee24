"""
Computing beside the event loop, which would stop for everybody meanwhile.

A thread cannot be cancelled, so there are few of them, and whatever takes longer comes in parts: a request whose client has
gone begins no further part, and parts that wait for a thread are dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

NUM_COMPUTING = 2
"""Threads for arithmetic: more would only take the engine's cores."""
NUM_SEARCHING = 4
"""Threads for searches."""

P = ParamSpec("P")
ResultT = TypeVar("ResultT")

_computing = ThreadPoolExecutor(NUM_COMPUTING, thread_name_prefix="computing")
_searching = ThreadPoolExecutor(NUM_SEARCHING, thread_name_prefix="searching")


async def run_computation(work: Callable[P, ResultT], *args: P.args, **kwargs: P.kwargs) -> ResultT:
    """Run a short piece of arithmetic, when a thread is free. Raises what it raises."""
    return await asyncio.get_running_loop().run_in_executor(_computing, partial(work, *args, **kwargs))


async def run_search(work: Callable[P, ResultT], *args: P.args, **kwargs: P.kwargs) -> ResultT:
    """Run a search, when a thread is free. Raises what it raises."""
    return await asyncio.get_running_loop().run_in_executor(_searching, partial(work, *args, **kwargs))
