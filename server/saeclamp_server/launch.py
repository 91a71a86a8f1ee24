"""The way of a server: command line -> plan -> engine -> app -> HTTP."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shlex
import signal
import threading
import traceback
from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from saeclamp._requests import API_KEY_VARIABLE
from saeclamp.types.refusals import listed
from saeclamp_saes import SAEEntry
from saeclamp_saes.cli.log_handler import ROOT_LOGGER, set_up_log
from saeclamp_saes.errors import UserError
from saeclamp_saes.library.feature_book import FeatureNote
from saeclamp_server.model_info import StartupError, in_one_line
from saeclamp_server.startup.options import ServeOptions
from saeclamp_server.startup.preflight import cannot_listen, check_address, check_vllm
from saeclamp_server.startup.serve_plan import ServePlan, make_plan
from saeclamp_server.startup.server_log import ServerLog, killed

logger = logging.getLogger("saeclamp.server")

PATIENCE_S = 4
"""Seconds of silence before the model and the SAEs are said to be read."""
PROGRESS_S = 20
"""Seconds between signs of life."""
NUM_NAMES = 5
"""Names of features that fit into a line of a terminal."""


def launch(options: ServeOptions) -> int:
    """
    Serve until interrupted.

    returns: exit status: 1 when something does not fit, or the engine does not start or dies, of which the terminal has been
        told in one sentence
    """
    log = ServerLog()
    set_up_log(ROOT_LOGGER, log.handler)
    try:
        vllm_version = check_vllm()
        # said only where it takes a while: what is wrong is found at once, and stands alone
        patience = threading.Timer(
            PATIENCE_S, logger.info, (f"reading {options.model} and what is to be loaded for it ...",)
        )
        patience.daemon = True
        patience.start()
        try:
            plan = make_plan(options)
        finally:
            patience.cancel()
        check_address(options.vllm_argv, options.metrics_port)
        for sae in plan.saes.values():
            logger.info(_description(sae))
        _serve(plan, log, vllm_version)
    except UserError as exc:
        logger.error(str(exc))
        return 1
    return 0


def _description(sae: SAEEntry) -> str:
    names = [note.name for note in sae.features.values()]
    named = f"named: {listed(names, NUM_NAMES)}" if names else "none is named"
    return f"SAE {sae.name}: {sae.summary.d_sae} features at {sae.summary.site}, sha256 {sae.sha256[:12]}; {named}"


def _serve(plan: ServePlan, log: ServerLog, vllm_version: str) -> None:
    # these set up the process for vLLM, so they come before its import
    from saeclamp_server.startup.vllm_settings import prepare_environment

    prepare_environment()
    if not plan.options.verbose:
        log.to_file()

    import uvloop

    from saeclamp_server.engine.lifeline import become_server, leave
    from saeclamp_server.startup.vllm_settings import bind_threads, count_workers, parse_vllm_args

    args = parse_vllm_args(plan.options, plan.model, plan.saes, plan.places)
    where = f"; its log is {log.path}" if log.path else ""
    logger.info(
        f"starting vLLM {vllm_version} (half a minute with --enforce-eager, some minutes when it compiles){where} ..."
    )
    bind_threads(count_workers(args))
    become_server()
    started = threading.Event()
    threading.Thread(target=_show_progress, args=(started,), daemon=True).start()
    try:
        uvloop.run(_run(args, started, plan, log))
    except UserError:
        raise
    except Exception as exc:  # the process ends here, and its user is told why
        traceback.print_exc()
        raise StartupError(f"The engine did not start: {_reason(exc, log)}. {log.where()}") from exc
    finally:
        started.set()
        if plan.trace is not None:
            plan.trace.close()
    logger.info("stopped.")
    leave(0)


def _show_progress(started: threading.Event) -> None:
    """Say that the engine is still starting; compiling is silent for minutes. A thread, because starting blocks the loop."""
    waited = 0
    while not started.wait(PROGRESS_S):
        waited += PROGRESS_S
        logger.info(f"still starting ({waited} s) ...")


def _reason(exc: Exception, log: ServerLog) -> str:
    """Find why the engine did not start: what it said itself, else what this process says of it."""
    # vLLM names the processes that have ended, with their exit statuses; or, where they ended later, says no more than that
    if "Engine core" in str(exc) or type(exc).__name__ == "EngineDeadError":
        if ended := re.search(r": -(\d+)", str(exc)):
            return f"it {killed(int(ended[1]))}"
        return log.start_error() or "it ended without a word"
    return f"{type(exc).__name__}: {in_one_line(str(exc))}"


def _cause_of_death(manager: Any, log: ServerLog) -> str:
    """
    Find why an engine died that ran: what it said itself, else how its process ended.

    manager: vLLM's, of the engine's processes
    """
    # only of the one that ended first: vLLM kills the others
    status = manager.finished_procs().get(manager.failed_proc_name, 0) if manager is not None else 0
    return log.fatal_error() or (f"it {killed(-status)}" if status < 0 else "it ended without a word")


async def _run(args: Namespace, started: threading.Event, plan: ServePlan, log: ServerLog) -> None:
    from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client
    from vllm.entrypoints.launchers.launcher import setup_server

    from saeclamp_server.engine.lifeline import end_engine, kill_descendants
    from saeclamp_server.startup.fingerprint import refuse_unlike_fleet

    def end_at_once(number: int, *_: object) -> None:
        kill_descendants()
        logger.info("ended at once." if started.is_set() else "stopped while starting.")
        os._exit(128 + number)

    # until HTTP is served, nothing is lost by an end at once
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end_at_once)
    try:
        address, socket = setup_server(args, reuse_port=False)
    except OSError as exc:
        raise StartupError(cannot_listen(args.host, args.port, exc)) from exc
    try:
        if plan.options.metrics_port is not None:
            _serve_metrics(plan.options.metrics_port, args)
        await refuse_unlike_fleet(args, plan)
        async with build_async_engine_client(args) as engine:
            logger.info("the engine runs; trying its steering and how well the SAEs fit ...")
            processes = engine.engine_core.resources.engine_manager  # asked for now, since what ends forgets it
            await _serve_http(engine, args, address, socket, plan, log, started, end_at_once)
            has_died = engine.errored
            await end_engine(engine)
    finally:
        socket.close()
    if has_died:
        raise StartupError(f"The engine has died: {_cause_of_death(processes, log)}. {log.where()}")


def _serve_metrics(port: int, args: Namespace) -> None:
    from saeclamp_server.metrics_server import serve_metrics

    serve_metrics("--metrics-port", args.host, [port])
    logger.info(f"metrics without a key are on port {port}")


async def _serve_http(
    engine: Any,
    args: Namespace,
    address: str,
    socket: Any,
    plan: ServePlan,
    log: ServerLog,
    started: threading.Event,
    end_at_once: Callable[[int], None],
) -> None:
    from saeclamp_server.app import build_app
    from saeclamp_server.http_server import serve_http

    app = await build_app(engine, args, plan)
    started.set()
    announcement = asyncio.create_task(print_ready(app.state, args, plan.saes, address, log))
    try:
        await serve_http(app, engine, args, socket, plan.options.drain_s, end_at_once)
    finally:
        announcement.cancel()
        with suppress(asyncio.CancelledError):
            await announcement


WITH_KEY = f", where {API_KEY_VARIABLE} has the server's key (export {API_KEY_VARIABLE}=...)"


async def print_ready(state: Any, args: Namespace, saes: Mapping[str, SAEEntry], address: str, log: ServerLog) -> None:
    """Wait until the server answers, then say so."""
    from saeclamp_server.startup.vllm_settings import served_names

    while not getattr(getattr(state, "server", None), "started", False):
        await asyncio.sleep(0.05)
    model = served_names(args)[0]
    if not saes:
        logger.info(f"ready on {address}. Upload vectors to {address}/v1/vectors.")
        return
    # --api-key of vLLM, or its variable
    needs_key = bool(getattr(args, "api_key", None) or os.environ.get("VLLM_API_KEY"))
    logger.info(f"ready on {address}. Try{WITH_KEY if needs_key else ''}:\n")
    log.show(example_request(address, model, next(iter(saes.values())), needs_key))


def _value(note: FeatureNote) -> float:
    return note.best or (note.clamp[1] if note.clamp else 1)


def example_request(address: str, model: str, sae: SAEEntry, needs_key: bool = False) -> str:
    """
    Write a `curl` that steers, quoted for the shell: names come from files that others have written.

    needs_key: whether the server wants a key; it is not printed, but has its place
    """
    note = next((note for note in sae.features.values() if note.max_act is not None), None)
    feature, value, unit = (note.name, _value(note), "max_act") if note else ("0", 10, "act")
    body = (
        f'{{\n  "model": {json.dumps(model)}, "temperature": 0, "repetition_penalty": 1.1, "max_tokens": 60,\n'
        f'  "messages": [{{"role": "user", "content": "Why is the sky blue?"}}],\n'
        f'  "steering": {{"interventions": [{{"op": "clamp", "feature": {json.dumps(f"{sae.name}/{feature}")}, '
        f'"value": {value}, "unit": "{unit}"}}]}}}}'
    )
    key = f' -H "Authorization: Bearer ${API_KEY_VARIABLE}"' if needs_key else ""
    return f"curl {address}/v1/chat/completions{key} -H 'Content-Type: application/json' -d {shlex.quote(body)}\n"
