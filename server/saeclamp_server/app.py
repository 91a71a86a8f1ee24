"""The HTTP app: vLLM's, with our request models on the steered endpoints, a guard before the others, and our state."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from vllm import envs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app as build_vllm_app
from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

from saeclamp._server_config import DEFAULT_PORT
from saeclamp.types import ServerIdentity
from saeclamp_server import playground
from saeclamp_server.api import drain as draining
from saeclamp_server.api import error_envelope, error_handlers, metrics, variants, vectors
from saeclamp_server.api.access import PUBLIC, KeyGuard, is_served
from saeclamp_server.api.body_limit import MEGABYTE, BodyLimit
from saeclamp_server.api.drain import Drain, DrainGuard
from saeclamp_server.api.features import FeatureSearch, load_served_saes
from saeclamp_server.api.features import router as features
from saeclamp_server.api.features.served_saes import labels_matching_weights
from saeclamp_server.api.model_share import CellBudget
from saeclamp_server.api.openai import early_checks, incomplete_answers, models, responses_and_messages
from saeclamp_server.api.openai import router as routes
from saeclamp_server.api.openai.middleware import STEERED_PATHS, SteeringMiddleware
from saeclamp_server.api.openai.sequence_tracker import SequenceTracker
from saeclamp_server.api.openai.vllm_model_client import VLLMModelClient
from saeclamp_server.api.state import AppState, CallServices
from saeclamp_server.api.steering import router as steering
from saeclamp_server.database.watch import DatabaseWatch
from saeclamp_server.engine.client import DecoderQueryClient, PromptMeanClient, ReportFetcher
from saeclamp_server.errors import RequestError, VectorsUnavailableError
from saeclamp_server.fleet import confirm_fleet, join_fleet
from saeclamp_server.model_info import StartupError
from saeclamp_server.served_sae import ServedSAE
from saeclamp_server.site_norms import QuickCheckResult
from saeclamp_server.startup.fingerprint import server_fingerprint, set_system_fingerprint
from saeclamp_server.startup.options import ServeOptions
from saeclamp_server.startup.preflight import vllm_version
from saeclamp_server.startup.sae_quick_check import check_saes_on_model
from saeclamp_server.startup.self_test import run_self_test
from saeclamp_server.startup.serve_plan import ServePlan
from saeclamp_server.startup.vllm_settings import sample_ids, served_names
from saeclamp_server.steering import SteeringContext
from saeclamp_server.steering.admission import Admission
from saeclamp_server.steering.dose import MAX_DOSE
from saeclamp_server.variants import VariantRegistry, VariantStore
from saeclamp_server.vectors import VectorFolder, VectorRegistry, VectorStore, default_folder

logger = logging.getLogger("saeclamp.server")

_CORS: Any = CORSMiddleware


async def build_app(engine: Any, args: Namespace, plan: ServePlan) -> FastAPI:
    """Check that the engine steers and that SAEs fit, and build the app. Raises StartupError."""
    saes, options = plan.saes, plan.options
    await run_self_test(engine, saes, plan.places)
    measured = await check_saes_on_model(engine, saes, sample_ids(args), options.allow_unverified)
    labels = await labels_matching_weights(engine, saes)
    served_saes = load_served_saes(saes, measured, labels)
    agreed, confirm = await _join_fleet(args, plan, engine.model_config, served_saes, measured)
    served_saes = {name: replace(sae, **agreed[name]._asdict()) for name, sae in served_saes.items()}
    norms = {name: result.norms for name, result in agreed.items()}
    vectors = VectorRegistry(plan.places, norms, VectorStore(plan.database, served_names(args)[0]), engine)
    try:
        await vectors.take_over(VectorFolder(options.vectors or default_folder(options.model)))
        await vectors.refresh()
    except VectorsUnavailableError as exc:
        raise StartupError(str(exc.__cause__)) from exc
    tasks = await engine.get_supported_tasks()
    drain = Drain()
    app = build_steering_app(args, tasks, engine.model_config, drain, options.max_body, options.playground)
    search = FeatureSearch(served_saes)
    context = SteeringContext(
        saes=served_saes,
        max_dose=MAX_DOSE if options.max_dose is None else options.max_dose,
        needs_measure=options.max_dose is not None,
        vectors=vectors,
        describe=search.description,
    )
    # embedding takes minutes for a large SAE, and searches by words until it is done
    threading.Thread(target=search.prepare, daemon=True).start()
    admission, sequences = Admission(options.max_features, options.max_waiting, metrics.WAIT.observe), SequenceTracker()
    metrics.observe_queue(admission)
    identity = _identity(options, args)
    metrics.observe_start(identity)
    sequences.listen(engine.output_processor)
    responses_and_messages.listen(engine)
    vllm = app.state
    await init_app_state(engine, vllm, args, tasks)
    await early_checks.check_before_answers(vllm, engine)  # around `listen`: what is refused does not count as run
    error_handlers.say_errors_in_messages(vllm)
    incomplete_answers.say_what_was_cut_short(vllm)
    database = DatabaseWatch(plan.database, metrics.DATABASE.set)
    database.start()
    serving = vllm.openai_serving_models
    bases = [path.name for path in serving.base_model_paths]
    calls = CallServices(context, admission, sequences, ReportFetcher(engine), plan.trace, bases[0], identity)
    app.state.saeclamp = AppState(
        calls=calls,
        search=search,
        variants=VariantRegistry(VariantStore(plan.database), context, bases, lambda: serving.lora_requests),
        vectors=vectors,
        model=VLLMModelClient(vllm, calls),
        decoder=DecoderQueryClient(engine),
        prompt_means=PromptMeanClient(engine),
        cells=CellBudget(),
        drain=drain,
        database=database,
        vllm=vllm,
    )
    await asyncio.to_thread(confirm)
    return app


async def _join_fleet(
    args: Namespace,
    plan: ServePlan,
    model_config: Any,
    served_saes: Mapping[str, ServedSAE],
    measured: Mapping[str, QuickCheckResult],
) -> tuple[Mapping[str, QuickCheckResult], Callable[[], None]]:
    """
    Enter the fleet that this server is to belong to, if any.

    returns: what to serve with in place of what was measured; what to call when requests are about to be answered
    """
    name, database = plan.options.fleet, plan.database
    if name is None:
        return measured, lambda: None
    fingerprint = server_fingerprint(args, plan, model_config, served_saes)
    set_system_fingerprint(args, fingerprint)
    joined = await asyncio.to_thread(join_fleet, database, name, fingerprint, measured)

    def confirm() -> None:
        confirm_fleet(database, name, fingerprint, joined)
        logger.info(f"one of the fleet {name}")

    return joined, confirm


def _identity(options: ServeOptions, args: Namespace) -> ServerIdentity:
    machine = socket.gethostname()  # of several servers on one machine, the others have ports of their own
    return ServerIdentity(
        version=version("saeclamp"),
        vllm=vllm_version(),
        fleet=options.fleet,
        replica=options.replica or (machine if args.port == DEFAULT_PORT else f"{machine}-{args.port}"),
    )


def build_steering_app(
    args: Namespace, supported_tasks: Any, model_config: Any, drain: Drain, max_body: int, has_playground: bool
) -> FastAPI:
    """
    Build vLLM's app, leave of its routes what is on the list, and replace those of the steered endpoints.

    max_body:       megabytes of the largest body
    has_playground: True to serve the page too
    """
    app: FastAPI = build_vllm_app(args, supported_tasks, model_config)
    app.title, app.openapi_schema = "saeclamp", None
    app.router.routes[:] = [route for route in app.router.routes if is_served(route) and not _is_replaced(route)]
    for own in (draining, routes, models, features, steering, variants, vectors):
        app.include_router(own.router)
    if has_playground:
        app.include_router(playground.router)
    app.add_exception_handler(RequestError, error_handlers.refuse)
    app.add_exception_handler(HTTPException, error_handlers.http_error)
    app.add_exception_handler(RequestValidationError, error_handlers.invalid)
    for kind in error_handlers.BROKEN:
        app.add_exception_handler(kind, error_handlers.broken)
    app.add_exception_handler(Exception, error_handlers.unexpected)
    ours = [Middleware(DrainGuard, drain=drain), Middleware(BodyLimit, max_megabytes=max_body)]
    app.user_middleware[:] = [
        Middleware(error_envelope.ErrorEnvelope, max_kept=max_body * MEGABYTE),
        *_guarded(app.user_middleware, args, ours, PUBLIC | playground.PATHS if has_playground else PUBLIC),
    ]
    # innermost, so that its refusals too are authenticated and carry a request id; add_middleware() would put it outermost
    app.user_middleware.append(Middleware(SteeringMiddleware))
    app.middleware_stack = None  # vLLM has built it already; it is rebuilt with the guard and the handler on first use
    return app


def _guarded(
    stack: list[Middleware], args: Namespace, ours: list[Middleware], public: frozenset[str]
) -> list[Middleware]:
    """
    Put our check of keys in the place of vLLM's, which guards some prefixes only, and behind it what else refuses requests.

    stack:  from the outermost. Ours come behind CORS, so that a page of another origin can read their refusals
    public: paths that need no key
    """
    keys = [key for key in (args.api_key or [envs.VLLM_API_KEY]) if key]
    if keys:
        ours = [Middleware(KeyGuard, keys=keys, public=public), *ours]
    others = [layer for layer in stack if layer.cls is not AuthenticationMiddleware]
    behind = 1 + [layer.cls for layer in others].index(_CORS)
    return [*others[:behind], *ours, *others[behind:]]


def _is_replaced(route: Any) -> bool:
    return isinstance(route, APIRoute) and route.path in (*STEERED_PATHS, models.MODELS_PATH)
