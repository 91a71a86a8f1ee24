"""vLLM's app, with our request models on the steered endpoints and a guard before the others."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from vllm import envs
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

from saeclamp_server.api import drain as draining
from saeclamp_server.api import error_envelope, error_handlers, variants, vectors
from saeclamp_server.api.access import KeyGuard, is_served
from saeclamp_server.api.body_limit import MEGABYTE, BodyLimit
from saeclamp_server.api.drain import Drain, DrainGuard
from saeclamp_server.api.features import finding_router
from saeclamp_server.api.features import router as features
from saeclamp_server.api.openai import models
from saeclamp_server.api.openai import router as routes
from saeclamp_server.api.openai.middleware import STEERED_PATHS, SteeringMiddleware
from saeclamp_server.api.steering import router as steering
from saeclamp_server.errors import RequestError

_CORS: Any = CORSMiddleware


def build_steering_app(
    args: Namespace, supported_tasks: Any, model_config: Any, drain: Drain, max_body: int
) -> FastAPI:
    """
    Build vLLM's app, leave of its routes what is on the list, and replace those of the steered endpoints.

    max_body: megabytes of the largest body
    """
    app: FastAPI = build_app(args, supported_tasks, model_config)
    app.title, app.openapi_schema = "saeclamp", None
    app.router.routes[:] = [route for route in app.router.routes if is_served(route) and not _is_replaced(route)]
    for own in (draining, routes, models, features, finding_router, steering, variants, vectors):
        app.include_router(own.router)
    app.add_exception_handler(RequestError, error_handlers.refuse)
    app.add_exception_handler(HTTPException, error_handlers.http_error)
    app.add_exception_handler(RequestValidationError, error_handlers.invalid)
    for kind in error_handlers.BROKEN:
        app.add_exception_handler(kind, error_handlers.broken)
    app.add_exception_handler(Exception, error_handlers.unexpected)
    ours = [Middleware(DrainGuard, drain=drain), Middleware(BodyLimit, max_megabytes=max_body)]
    app.user_middleware[:] = [
        Middleware(error_envelope.ErrorEnvelope, max_kept=max_body * MEGABYTE),
        *_guarded(app.user_middleware, args, ours),
    ]
    # innermost, so that its refusals too are authenticated and carry a request id; add_middleware() would put it outermost
    app.user_middleware.append(Middleware(SteeringMiddleware))
    app.middleware_stack = None  # vLLM has built it already; it is rebuilt with the guard and the handler on first use
    return app


def _guarded(stack: list[Middleware], args: Namespace, ours: list[Middleware]) -> list[Middleware]:
    """
    Put our check of keys in the place of vLLM's, which guards some prefixes only, and behind it what else refuses requests.

    stack: from the outermost. Ours come behind CORS, so that a page of another origin can read their refusals
    """
    keys = [key for key in (args.api_key or [envs.VLLM_API_KEY]) if key]
    if keys:
        ours = [Middleware(KeyGuard, keys=keys), *ours]
    others = [layer for layer in stack if layer.cls is not AuthenticationMiddleware]
    behind = 1 + [layer.cls for layer in others].index(_CORS)
    return [*others[:behind], *ours, *others[behind:]]


def _is_replaced(route: Any) -> bool:
    return isinstance(route, APIRoute) and route.path in (*STEERED_PATHS, models.MODELS_PATH)
