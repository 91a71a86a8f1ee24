"""
Ray Serve: `serve run saeclamp_server.ray:app argv="MODEL --sae NAME" replicas=2`.

Each replica is a whole server without its own HTTP: Serve's proxy takes the requests and passes them on as they are. What
makes several answer as one is `--fleet` in `argv`, with a PostgreSQL database in common.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig

from saeclamp_saes.cli.log_handler import ROOT_LOGGER, set_up_log
from saeclamp_server.cli.args import parse_args
from saeclamp_server.engine.lifeline import STOP_S, become_server, end_engine, kill_descendants
from saeclamp_server.metrics_server import serve_metrics
from saeclamp_server.model_info import StartupError
from saeclamp_server.startup.options import ServeOptions
from saeclamp_server.startup.preflight import check_vllm
from saeclamp_server.startup.serve_plan import make_plan

logger = logging.getLogger("saeclamp.server")

ROUTER: Any = {"request_router_class": "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"}
"""One conversation to one replica, by the header `x-session-id`."""
MAX_ONGOING = 512
"""Requests of a replica at once. Ray's default of 5 would leave the engine idle."""
HEALTH_S = 10
"""Seconds between two checks of a replica."""
LOOK_S = 0.5
LAST_ANSWERS_S = 1.0
"""Seconds for the errors of what was being answered when the engine died."""
NUM_PORTS = 100
"""Ports that are tried for the metrics of a replica."""


class Settings(BaseModel):
    """Arguments of `serve run` and of the `args` in a config file."""

    model_config = ConfigDict(extra="forbid")

    argv: str
    """Arguments of `saeclamp serve`, as one line for a shell."""
    replicas: int = Field(1, ge=1)
    max_replicas: int | None = Field(None, ge=1)
    """Replicas up to which there are more of them while many requests are in flight; None for always `replicas`."""
    target_ongoing_requests: int = Field(64, ge=1)
    """Requests in flight in each replica, for which their number is chosen."""
    max_ongoing_requests: int = Field(MAX_ONGOING, ge=1)
    """Requests in flight in a replica, beyond which another one is asked, or the request waits in the proxy."""
    gpus: float = Field(0, ge=0)
    """GPUs of a replica, all on one machine: as many as its tensor and pipeline parallel ranks."""
    cpus: float = Field(1, ge=0)
    """CPUs of a replica, by which Ray decides how many fit on a machine."""
    metrics_port: int | None = Field(None, ge=1, le=65_535)
    """Port of a replica's own `/metrics`, which needs no key; of several on a machine each takes the next free one."""


class Replica:
    """A server without HTTP of its own."""

    def __init__(self, argv: list[str], metrics_port: int | None) -> None:
        self._options, self._metrics_port = _options(argv), metrics_port
        self._engine: Any = None
        self._stack = AsyncExitStack()

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """Start the engine, and build the app. Raises UserError, which Serve shows in the deployment's status."""
        # these set up the process for vLLM, so they come before its import
        set_up_log(ROOT_LOGGER)
        check_vllm()
        plan = await asyncio.to_thread(make_plan, self._options)
        from saeclamp_server.startup.vllm_settings import prepare_environment

        prepare_environment()
        from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client

        from saeclamp_server.app import build_app
        from saeclamp_server.startup.fingerprint import refuse_unlike_fleet
        from saeclamp_server.startup.vllm_settings import bind_threads, count_workers, parse_vllm_args

        args = parse_vllm_args(plan.options, plan.model, plan.saes, plan.places)
        bind_threads(count_workers(args))
        become_server()
        await refuse_unlike_fleet(args, plan)
        self._engine = await self._stack.enter_async_context(build_async_engine_client(args))
        app = await build_app(self._engine, args, plan)
        self._watch = asyncio.create_task(_end_with(self._engine))
        # vLLM's handlers of errors tell its HTTP server to end; here `_end_with` ends the process
        app.state.server = SimpleNamespace(should_exit=False)
        if self._metrics_port is not None:
            ports = range(self._metrics_port, min(self._metrics_port + NUM_PORTS, 65_536))
            metrics = serve_metrics("metrics_port", "0.0.0.0", ports)
            logger.info(f"metrics of this replica are on port {metrics.server_port}")
            self._stack.callback(metrics.server_close)
            self._stack.callback(metrics.shutdown)
        return app

    async def check_health(self) -> None:
        """Raise where the engine has died, so that Serve replaces this replica."""
        if self._engine is not None:
            await self._engine.check_health()

    async def __del__(self) -> None:
        """End the engine: Serve calls this after the last answer, or when `graceful_shutdown_timeout_s` is over."""
        engine, self._engine = self._engine, None
        if engine is None:
            return
        self._watch.cancel()
        await end_engine(engine)
        await self._stack.aclose()


async def _end_with(engine: Any) -> None:
    """
    End this process when its engine has died, so that Serve passes requests to others at once, and starts another one.

    It would go on sending them here for three checks of health.
    """
    while not engine.errored:
        await asyncio.sleep(LOOK_S)
    logger.error("the engine has died; this replica ends")
    await asyncio.sleep(LAST_ANSWERS_S)
    kill_descendants()
    os._exit(1)


def app(args: Mapping[str, Any]) -> serve.Application:
    """
    Build the application, as `serve run` and config files ask for it.

    args: fields of `Settings`; as strings where they come from a command line
    Raises StartupError for others, and for arguments that `saeclamp serve` would not take.
    """
    settings = _settings(args)
    argv = shlex.split(settings.argv)
    options = _options(argv)
    if options.metrics_port is not None:
        raise StartupError(
            "--metrics-port: replicas of one machine cannot share it; say metrics_port=PORT beside argv."
        )
    scaling: dict[str, Any] = {"num_replicas": settings.replicas}
    if settings.max_replicas is not None:
        scaling = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=settings.replicas,
                max_replicas=settings.max_replicas,
                target_ongoing_requests=settings.target_ongoing_requests,
            )
        }
    if settings.gpus:
        # one bundle: all GPUs of a replica on one machine
        scaling["placement_group_bundles"] = [{"CPU": settings.cpus, "GPU": settings.gpus}]
        scaling["placement_group_strategy"] = "STRICT_PACK"
    deployment: Any = serve.deployment(serve.ingress()(Replica))  # overloaded, and of its forms mypy takes another
    bound: serve.Application = deployment.options(
        name="saeclamp",
        max_ongoing_requests=settings.max_ongoing_requests,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        graceful_shutdown_timeout_s=options.drain_s + STOP_S,
        health_check_period_s=HEALTH_S,
        request_router_config=RequestRouterConfig(**ROUTER),
        **scaling,
    ).bind(argv, settings.metrics_port)
    return bound


def _settings(args: Mapping[str, Any]) -> Settings:
    # not by the annotation of `app`, as Ray would have it: it looks for a class, and annotations here are strings
    try:
        return Settings.model_validate(args)
    except ValidationError as exc:
        said = [f"{'.'.join(map(str, error['loc'])) or 'arguments'}: {error['msg']}" for error in exc.errors()]
        known = ", ".join(Settings.model_fields)
        raise StartupError(f"Arguments of saeclamp_server.ray:app: {'; '.join(said)}. There are {known}.") from exc


def _options(argv: list[str]) -> ServeOptions:
    try:
        options = parse_args(["serve", *argv])
    except SystemExit as exc:  # as on a command line, where the parser has said why
        raise StartupError(f"`saeclamp serve {shlex.join(argv)}` is not understood; the line above says why.") from exc
    assert isinstance(options, ServeOptions), "it is serve's"
    if options.replica is None:
        try:
            name = serve.get_replica_context().replica_id.unique_id
        except serve.exceptions.RayServeException:  # not in a replica: the arguments are only checked
            return options
        options = replace(options, replica=name)
    return options
