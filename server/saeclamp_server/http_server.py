"""
The HTTP server, from the first request to the last.

vLLM's own stops the engine as soon as a signal comes, and steered answers with it, whose receipts nobody can fetch any more.
Here the engine stops last: requests are refused, those that run are answered, what takes too long is ended as a client's
going would end it, with the receipt of what there is.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from argparse import Namespace
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from vllm import envs
from vllm.entrypoints.launchers.launcher import NoSignalServer, watchdog_loop
from vllm.entrypoints.launchers.utils.constants import (
    H11_MAX_HEADER_COUNT_DEFAULT,
    H11_MAX_INCOMPLETE_EVENT_SIZE_DEFAULT,
)
from vllm.entrypoints.launchers.utils.server_utils import get_uvicorn_log_config
from vllm.entrypoints.launchers.utils.ssl import SSLCertRefresher

from saeclamp_server.api.drain import Drain
from saeclamp_server.api.state import state_of

logger = logging.getLogger("saeclamp.server")

LAST_RECEIPTS_S = 5.0
"""Seconds that requests which were ended may take to say so."""
LOOK_S = 0.5
KEEP_ALIVE = "VLLM_HTTP_TIMEOUT_KEEP_ALIVE"
KEEP_ALIVE_S = 65
"""
Seconds that an idle connection stays open. vLLM's 5 are what httpx, and so OpenAI's client, takes too: where both give up
a connection at the same moment, a request is sent into one that is being closed.
"""
CLOSE_S = 3
"""Seconds that connections may take to close when nothing is answered any more."""


async def serve_http(
    app: FastAPI,
    engine: Any,
    args: Namespace,
    socket: Any,
    drain_s: float,
    end_at_once: Callable[[int], None],
) -> None:
    """
    Serve until the first SIGINT or SIGTERM, and then until all requests are answered, or the engine has died.

    drain_s:     seconds that these may take
    end_at_once: is called with the number of any further signal
    """
    config = _config(app, args)
    server = NoSignalServer(config)
    app.state.server = server  # where vLLM's handlers of errors look for it
    told = asyncio.Event()

    def stop(number: int) -> None:
        if told.is_set():
            end_at_once(number)
        told.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    helpers = [
        asyncio.create_task(_stop(server, told, state_of(app).drain, engine, drain_s)),
        asyncio.create_task(watchdog_loop(server, engine)),
    ]
    refresher = _certificates(config, args)
    try:
        await server.serve(sockets=[socket])
    finally:
        for helper in helpers:
            helper.cancel()
        if refresher is not None:
            refresher.stop()


async def _stop(server: NoSignalServer, told: asyncio.Event, drain: Drain, engine: Any, drain_s: float) -> None:
    await told.wait()
    drain.begin()
    if drain.num_running:
        logger.info(f"finishing {_requests(drain.num_running)}, for at most {drain_s:g} s. Once more ends at once.")
    if not await drain.wait(drain_s):
        logger.warning(f"--drain {drain_s:g} is over: {_requests(drain.num_running)} cut short, with what there is.")
        await _abort(drain, engine)
    server.should_exit = True


def _requests(num: int) -> str:
    return "1 request" if num == 1 else f"{num} requests"


async def _abort(drain: Drain, engine: Any) -> None:
    """End what runs; again and again, because a request may ask for several answers, or wait for its turn."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + LAST_RECEIPTS_S
    while not await drain.wait(LOOK_S) and loop.time() < deadline and not engine.errored:
        await engine.abort([*engine.output_processor.request_states], internal=True)


def _config(app: FastAPI, args: Namespace) -> Any:
    import uvicorn

    log_config = get_uvicorn_log_config(args)
    config: Any = uvicorn.Config(
        app,
        host=args.host,
        port=args.port,
        log_level=args.uvicorn_log_level,
        access_log=not args.disable_uvicorn_access_log,
        timeout_keep_alive=envs.VLLM_HTTP_TIMEOUT_KEEP_ALIVE if KEEP_ALIVE in os.environ else KEEP_ALIVE_S,
        timeout_graceful_shutdown=CLOSE_S,
        ssl_keyfile=args.ssl_keyfile,
        ssl_certfile=args.ssl_certfile,
        ssl_ca_certs=args.ssl_ca_certs,
        ssl_cert_reqs=args.ssl_cert_reqs,
        ssl_ciphers=args.ssl_ciphers,
        **({} if log_config is None else {"log_config": log_config}),
    )
    # vLLM's own class of connections reads them there
    config.h11_max_incomplete_event_size = args.h11_max_incomplete_event_size or H11_MAX_INCOMPLETE_EVENT_SIZE_DEFAULT
    config.h11_max_header_count = args.h11_max_header_count or H11_MAX_HEADER_COUNT_DEFAULT
    config.load()
    return config


def _certificates(config: Any, args: Namespace) -> Any:
    """Watch the files of a certificate, where that was asked for."""
    if not args.enable_ssl_refresh:
        return None
    return SSLCertRefresher(
        ssl_context=config.ssl, key_path=args.ssl_keyfile, cert_path=args.ssl_certfile, ca_path=args.ssl_ca_certs
    )
