"""The only constructor: command line -> SAEs -> engine -> app -> HTTP server."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import sys
import threading
from argparse import Namespace
from collections.abc import Mapping
from typing import Any, NamedTuple

from saeclamp_saes import SAEEntry
from saeclamp_saes.library.feature_book import FeatureNote
from saeclamp_server.args import ServeOptions
from saeclamp_server.fit import ModelFacts, StartupError, check_fit
from saeclamp_server.packaged_model import PACKAGED_MODEL, PackagedModelError, prepared_model
from saeclamp_server.preflight import check_vllm, open_saes, read_model
from saeclamp_server.variants import StoreError, VariantStore, default_url
from saeclamp_server.vectors import Place, VectorFolder, Vectors, default_folder, find_places

PROGRESS_S = 20
"""Seconds between signs of life."""
STOP_S = 10
"""How long a start that was told to stop may take to clean up."""


class Plan(NamedTuple):
    """What is to be served, as it was found before the engine starts."""

    options: ServeOptions
    model: ModelFacts
    saes: Mapping[str, SAEEntry]
    places: tuple[Place, ...]
    """Where vectors can sit."""
    store: VariantStore


def say(message: str) -> None:
    """Tell the terminal what is going on."""
    print(f"saeclamp: {message}", file=sys.stderr, flush=True)


def launch(options: ServeOptions) -> None:
    """Serve until interrupted. Raises StartupError before any long work when something does not fit."""
    vllm_version = check_vllm()
    plan = _prepare(options)
    for sae in plan.saes.values():
        summary = sae.summary
        names = ", ".join(note.name for note in sae.features.values()) or "none"
        say(f"SAE {sae.name}: {summary.d_sae} features at {summary.site}, sha256 {sae.sha256[:12]}; named: {names}")
    say(f"starting vLLM {vllm_version} (half a minute with --enforce-eager, some minutes when it compiles) ...")
    _serve(plan)


def _prepare(options: ServeOptions) -> Plan:
    if options.model != PACKAGED_MODEL and "bundled" in options.saes:
        raise StartupError(f"The bundled SAE was trained on {PACKAGED_MODEL} and serves no other model.")
    if options.model == PACKAGED_MODEL:
        saes = open_saes(options.saes, say)  # first, because the model may have to be converted
        model = read_model(_model_path(options.model))
    else:
        model = read_model(options.model)  # first, because SAEs may be downloaded for a model that cannot be steered
        saes = open_saes(options.saes, say)
    check_fit(saes, model)
    places = find_places(options.vector_sites, options.max_vectors, saes, model)
    return Plan(options, model, saes, places, _open_store(options.variants))


def _open_store(url: str | None) -> VariantStore:
    try:
        return VariantStore(url or default_url())
    except StoreError as exc:
        raise StartupError(f"{exc} Name another one with --variants URL.") from exc


def _model_path(model: str) -> str:
    if model != PACKAGED_MODEL:
        return model
    try:
        return str(prepared_model(say))
    except PackagedModelError as exc:
        raise StartupError(str(exc)) from exc


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
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.launcher import serve_http
    from vllm.entrypoints.launchers.utils.server_utils import get_uvicorn_log_config

    from saeclamp_server.admission import Admission
    from saeclamp_server.app import create_app
    from saeclamp_server.engine.fit_check import check_that_saes_fit
    from saeclamp_server.engine.self_test import check_that_steering_works
    from saeclamp_server.engine.settings import sample_ids
    from saeclamp_server.engine.trusted_labels import trusted_labels
    from saeclamp_server.everywhere import EngineDirections
    from saeclamp_server.features import FeatureSearch, known_saes
    from saeclamp_server.openai_api import elsewhere, metrics
    from saeclamp_server.openai_api.sequences import Sequences
    from saeclamp_server.openai_api.served_model import ServedModel
    from saeclamp_server.steering import Served
    from saeclamp_server.variants import Variants

    saes, options, store = plan.saes, plan.options, plan.store
    await check_that_steering_works(engine, saes, plan.places)
    measured = await check_that_saes_fit(engine, saes, sample_ids(args), options.allow_unverified, say)
    lengths = {name: of.lengths for name, of in measured.items()}
    labels = await trusted_labels(engine, saes, say)
    vectors = Vectors(plan.places, lengths, VectorFolder(options.vectors or default_folder(options.model)), engine)
    await vectors.load(say)
    tasks = await engine.get_supported_tasks()
    app = create_app(args, tasks, engine.model_config)
    max_acts = {name: opened.max_acts for name, opened in labels.items()}
    app.state.served = Served(saes, lengths, max_acts, options.max_dose, vectors)
    app.state.known = known_saes(saes, lengths, {name: of.fit for name, of in measured.items()}, labels, say)
    app.state.search = FeatureSearch(app.state.known, app.state.served.max_act)
    # embedding takes minutes for a large SAE, and searches by words until it is done
    threading.Thread(target=app.state.search.prepare, args=(say,), daemon=True).start()
    app.state.admission = Admission(plan.options.max_features, plan.options.max_waiting, metrics.WAIT.observe)
    metrics.watch(app.state.admission)
    app.state.sequences = Sequences()
    app.state.sequences.listen(engine.output_processor)
    elsewhere.listen(engine)
    await init_app_state(engine, app.state, args, tasks)
    bases = [path.name for path in app.state.openai_serving_models.base_model_paths]
    app.state.variants = Variants(store, app.state.served, bases)
    app.state.model, app.state.directions = ServedModel(app.state), EngineDirections(engine)
    log_config = get_uvicorn_log_config(args)
    announcement = asyncio.create_task(_announce(app.state, args, saes, address))
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


async def _announce(state: Any, args: Namespace, saes: Mapping[str, SAEEntry], address: str) -> None:
    while not getattr(getattr(state, "server", None), "started", False):
        await asyncio.sleep(0.05)
    model = args.served_model_name[0] if args.served_model_name else args.model
    if not saes:
        say(f"ready on {address}. Upload vectors to {address}/v1/vectors.")
        return
    say(f"ready on {address}. Try:\n")
    print(example_request(address, model, next(iter(saes.values()))), flush=True)


def _value(note: FeatureNote) -> float:
    return note.best or (note.clamp[1] if note.clamp else 1)


def example_request(address: str, model: str, sae: SAEEntry) -> str:
    """Write a `curl` that steers, quoted for the shell: names come from files that others have written."""
    note = next((note for note in sae.features.values() if note.max_act is not None), None)
    feature, value, unit = (note.name, _value(note), "max_act") if note else ("0", 10, "act")
    body = (
        f'{{\n  "model": {json.dumps(model)}, "temperature": 0, "repetition_penalty": 1.1, "max_tokens": 60,\n'
        f'  "messages": [{{"role": "user", "content": "Why is the sky blue?"}}],\n'
        f'  "steering": {{"interventions": [{{"op": "clamp", "feature": {json.dumps(f"{sae.name}/{feature}")}, '
        f'"value": {value}, "unit": "{unit}"}}]}}}}'
    )
    return f"curl {address}/v1/chat/completions -H 'Content-Type: application/json' -d {shlex.quote(body)}\n"
