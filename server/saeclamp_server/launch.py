"""The way of a server: command line -> plan -> engine -> app -> HTTP."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from argparse import Namespace
from typing import Any

from saeclamp_server.announcement import announce
from saeclamp_server.args import ServeOptions
from saeclamp_server.fit import StartupError
from saeclamp_server.plan import Plan, prepare
from saeclamp_server.preflight import check_vllm

PROGRESS_S = 20
"""Seconds between signs of life."""
STOP_S = 10
"""How long a start that was told to stop may take to clean up."""


def say(message: str) -> None:
    """Tell the terminal what is going on."""
    print(f"saeclamp: {message}", file=sys.stderr, flush=True)


def launch(options: ServeOptions) -> None:
    """Serve until interrupted. Raises StartupError before any long work when something does not fit."""
    vllm_version = check_vllm()
    plan = prepare(options, say)
    for sae in plan.saes.values():
        summary = sae.summary
        names = ", ".join(note.name for note in sae.features.values()) or "none"
        say(f"SAE {sae.name}: {summary.d_sae} features at {summary.site}, sha256 {sae.sha256[:12]}; named: {names}")
    say(f"starting vLLM {vllm_version} (half a minute with --enforce-eager, some minutes when it compiles) ...")
    _serve(plan)


def _serve(plan: Plan) -> None:
    # these set up the process for vLLM, so they come before its import
    from saeclamp_server.engine.settings import prepare_environment

    prepare_environment()

    import uvloop

    from saeclamp_server.engine.settings import bind_threads, count_workers, parse_vllm_args

    args = parse_vllm_args(plan.options, plan.model, plan.saes, say, plan.places)
    bind_threads(count_workers(args))
    started = threading.Event()
    threading.Thread(target=_show_progress, args=(started,), daemon=True).start()
    uvloop.run(_run(args, started, plan))


def _show_progress(started: threading.Event) -> None:
    """Say that the engine is still starting; compiling is silent for minutes. A thread, because starting blocks the loop."""
    waited = 0
    while not started.wait(PROGRESS_S):
        waited += PROGRESS_S
        say(f"still starting ({waited} s) ...")


async def _run(args: Namespace, started: threading.Event, plan: Plan) -> None:
    from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client
    from vllm.entrypoints.launchers.launcher import setup_server

    # until the HTTP server installs its own handlers, SIGTERM must end the engine's processes too
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        address, socket = setup_server(args, reuse_port=False)
    except OSError as exc:
        raise StartupError(f"Cannot listen on {args.host}:{args.port}: {exc.strerror}; choose another --port.") from exc
    try:
        async with build_async_engine_client(args) as engine:
            started.set()
            shutdown = await _serve_http(engine, args, address, socket, plan)
        await shutdown
    finally:
        socket.close()


def _interrupt(*_: object) -> None:
    # vLLM may wait for an engine that has died of the same signal, so waiting has an end
    stop = threading.Timer(STOP_S, _die)
    stop.daemon = True
    stop.start()
    raise KeyboardInterrupt


def _die() -> None:
    import psutil  # vLLM's own dependency; the engine's workers are its grandchildren

    for process in psutil.Process().children(recursive=True):
        process.kill()
    say("stopped while starting.")
    os._exit(128 + signal.SIGTERM)


async def _serve_http(engine: Any, args: Namespace, address: str, socket: Any, plan: Plan) -> Any:
    from vllm import envs
    from vllm.entrypoints.launchers.launcher import serve_http
    from vllm.entrypoints.launchers.utils.server_utils import get_uvicorn_log_config

    from saeclamp_server.assembly import assembled

    app = await assembled(engine, args, plan, say)
    log_config = get_uvicorn_log_config(args)
    announcement = asyncio.create_task(announce(app.state, args, plan.saes, address, say))
    try:
        return await serve_http(
            app,
            sock=socket,
            enable_ssl_refresh=args.enable_ssl_refresh,
            host=args.host,
            port=args.port,
            log_level=args.uvicorn_log_level,
            access_log=not args.disable_uvicorn_access_log,
            timeout_keep_alive=envs.VLLM_HTTP_TIMEOUT_KEEP_ALIVE,
            ssl_keyfile=args.ssl_keyfile,
            ssl_certfile=args.ssl_certfile,
            ssl_ca_certs=args.ssl_ca_certs,
            ssl_cert_reqs=args.ssl_cert_reqs,
            ssl_ciphers=args.ssl_ciphers,
            h11_max_incomplete_event_size=args.h11_max_incomplete_event_size,
            h11_max_header_count=args.h11_max_header_count,
            **({} if log_config is None else {"log_config": log_config}),
        )
    finally:
        announcement.cancel()
