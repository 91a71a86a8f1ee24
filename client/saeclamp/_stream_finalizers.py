"""Closing the connection of a stream that nobody has closed, when it is garbage."""

from __future__ import annotations

import asyncio
import weakref

import httpx


def finalizer(stream: object, response: httpx.Response) -> weakref.finalize[..., object]:
    """Close a response with the stream that reads it."""
    close = weakref.finalize(stream, response.close)
    close.atexit = False
    return close


def async_finalizer(stream: object, response: httpx.Response) -> weakref.finalize[..., object]:
    """Close a response in the loop that runs now, when the stream that reads it is garbage."""
    close = weakref.finalize(stream, _close_later, asyncio.get_running_loop(), response)
    close.atexit = False
    return close


_closing: set[asyncio.Task[None]] = set()
"""A loop refers to its tasks weakly; these must live until they are done."""


def _close_later(loop: asyncio.AbstractEventLoop, response: httpx.Response) -> None:
    """Close from a finaliser, which may run in any thread and cannot await."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(_start_closing, response)


def _start_closing(response: httpx.Response) -> None:
    task = asyncio.ensure_future(response.aclose())
    _closing.add(task)
    task.add_done_callback(_closing.discard)
