"""What users and their programs write and read: endpoints, commands, wire types, metrics, refusals."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from fastapi.routing import APIRoute
from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from tests.support.bundled import ENTRY
from tests.support.refusal_table import REFUSALS
from tests.support.sae_entries import served_saes

from saeclamp import types
from saeclamp_server.api import metrics
from saeclamp_server.api.drain import Drain
from saeclamp_server.api.steering_body import steering_of
from saeclamp_server.app import build_steering_app
from saeclamp_server.cli import args
from saeclamp_server.errors import RequestError
from saeclamp_server.site_norms import SiteNorms
from saeclamp_server.startup.options import MAX_BODY
from saeclamp_server.steering import SteeringContext, resolve
from saeclamp_server.vllm_compat import import_cli_args

STEERED = ("/v1/chat/completions", "/v1/completions")


def openapi() -> Any:
    """Describe our own endpoints, with all that they refer to; which of vLLM's are served is a list of `access`."""
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    vllm_args = import_cli_args().make_arg_parser(FlexibleArgumentParser()).parse_args(["model"])
    app = build_steering_app(vllm_args, ("generate",), None, Drain(), MAX_BODY, has_playground=True)
    document = app.openapi()
    ours = {one.path for one in app.routes if isinstance(one, APIRoute) and "saeclamp" in one.endpoint.__module__}
    own = {path: does for path, does in document["paths"].items() if path in ours and path not in STEERED}
    schemas = document["components"]["schemas"]
    steered = {path: sorted(document["paths"][path]["post"]["responses"]) for path in STEERED}
    return {"own": own, "schemas": _referred(own, schemas), "steered": steered}


def _referred(value: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            name = str(part.get("$ref", "")).rpartition("/")[2]
            if name and name not in found:
                found[name] = schemas[name]
                waiting.append(schemas[name])
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
    return found


def command_line() -> Any:
    """List the options of every command, as they are declared: `--help` is laid out anew by each version of Python."""
    return dict(_commands("saeclamp", args.build_parsers()[0]))


def _commands(name: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, Any]]:
    options = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command, below in action.choices.items():
                yield from _commands(f"{name} {command}", below)
            continue
        names = ", ".join(action.option_strings) or action.dest
        metavar = action.metavar or (list(action.choices) if action.choices else None)
        options.append([names, metavar, action.nargs, _plain(action.default), action.help])
    yield name, {"description": parser.description, "options": options}


def _plain(default: Any) -> Any:
    return default if default is None or isinstance(default, int | float | str) else str(default)


def wire_types() -> Any:
    """Describe every type that is sent or received, as its JSON schema."""
    models = [
        one
        for name, one in vars(types).items()
        if name in types.__all__ and inspect.isclass(one) and issubclass(one, BaseModel)
    ]
    return models_json_schema([(one, "validation") for one in sorted(models, key=lambda one: one.__name__)])[1]["$defs"]


def metric_names() -> Any:
    """List our metrics: name, kind, labels and help."""
    found = [one for one in vars(metrics).values() if isinstance(one, MetricWrapperBase)]
    return sorted([one._name, one._type, list(one._labelnames), one._documentation] for one in found)


def refusals() -> Any:
    """Refuse the refusal table, as far as that needs neither a model nor vLLM's own checks."""
    second = replace(ENTRY, name="second")
    norms = SiteNorms(100.0, [1.0] * ENTRY.summary.d_sae)
    served = SteeringContext(served_saes((ENTRY, norms), (second, norms)))
    said: dict[str, Any] = {}
    for name, refusal in REFUSALS.items():
        try:
            steering = steering_of({"model": "x", "prompt": "x", **refusal.body})
            said[name] = None if steering is None else resolve(steering, served).program.spec and None
        except RequestError as exc:
            said[name] = [exc.status, exc.code, exc.param, exc.message]
    return said


SURFACE: dict[str, Callable[[], Any]] = {
    "openapi": openapi,
    "commands": command_line,
    "wire_types": wire_types,
    "metrics": metric_names,
    "refusals": refusals,
}
