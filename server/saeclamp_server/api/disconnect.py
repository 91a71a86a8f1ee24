"""Work that ends when its client hangs up."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from fastapi import Response
from starlette.types import Receive

CLIENT_CLOSED_REQUEST = 499
"""Status for the log: nobody reads it."""


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, Response]) -> Response:
    """
    Do the work, unless its client hangs up first: then it is cancelled, and with it all that it awaits.

    receive: of a request whose body has been read
    """
    task, gone = asyncio.ensure_future(work), asyncio.create_task(hung_up(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else Response(status_code=CLIENT_CLOSED_REQUEST)
    finally:
        await cancelled(task, gone)


async def hung_up(receive: Receive) -> None:
    """Return when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def cancelled(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks that are not done, and wait until what they began has been given up."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
