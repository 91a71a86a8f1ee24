"""
When a request is sent again, and how long after. Pure, so that the sync and the async client share it.

A failed attempt is repeated when the server cannot have begun to answer: no connection, a connection that broke before
the status line, or a status that says "later". A read timeout is not repeated, because the work may have been done.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from email.utils import parsedate_to_datetime

import httpx

MIN_DELAY = 0.5
MAX_BACKOFF = 8.0
MAX_DELAY = 60.0
"""Seconds. The last one caps what the server may ask for."""

_RETRIED_ERRORS = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout, httpx.PoolTimeout)


def delay_after_error(exc: httpx.RequestError, attempt: int, max_retries: int) -> float | None:
    """
    Return the seconds to wait before the next attempt, or None to give up.

    attempt: how many retries have been made already
    """
    again = attempt < max_retries and isinstance(exc, _RETRIED_ERRORS)
    return backoff(attempt) if again else None


def delay_after_status(response: httpx.Response, attempt: int, max_retries: int) -> float | None:
    """Return the seconds to wait before the next attempt, or None to give up. Reads only the status and the headers."""
    if attempt >= max_retries or not _wants_retry(response):
        return None
    asked = _asked_delay(response.headers)
    return backoff(attempt) if asked is None else min(asked, MAX_DELAY)


def backoff(attempt: int) -> float:
    """Draw from 0.5 s up to a ceiling that doubles with every attempt, 8 s at most."""
    # the exponent is bounded too, because a float overflows at 2 to the power of 1024
    ceiling = min(MAX_BACKOFF, MIN_DELAY * 2.0 ** min(attempt + 1, 10))
    # by chance, so that clients that were refused together do not come back together
    return random.uniform(MIN_DELAY, ceiling)


def _wants_retry(response: httpx.Response) -> bool:
    order: str = response.headers.get("x-should-retry", "").strip().lower()
    if order in ("true", "false"):
        return order == "true"
    status = response.status_code
    # 409 is a lasting conflict and 501 a lasting lack.
    return status in (408, 429) or (status >= 500 and status != 501)


def _asked_delay(headers: httpx.Headers) -> float | None:
    """Read `retry-after-ms`, else `Retry-After` in seconds or as a date; None where there is nothing usable."""
    millis = _seconds(headers.get("retry-after-ms"))
    if millis is not None:
        return millis / 1000
    after = headers.get("retry-after")
    seconds = _seconds(after)
    return _until(after) if seconds is None else seconds


def _seconds(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _until(date: str | None) -> float | None:
    try:
        moment = parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return None
    return max(0.0, moment - time.time())


def sleep(seconds: float) -> None:
    """Wait before a retry. Tests replace it."""
    time.sleep(seconds)


async def sleep_async(seconds: float) -> None:
    """Wait before a retry. Tests replace it."""
    await asyncio.sleep(seconds)
