"""The plan of a server, made before the engine starts: nothing here takes long but a download."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from saeclamp_saes import SAEEntry
from saeclamp_server.database import Database, DatabaseError, default_url
from saeclamp_server.fleet import check_database
from saeclamp_server.model_info import ModelInfo, StartupError, check_compatible
from saeclamp_server.packaged_model import PACKAGED_MODEL, prepared_model
from saeclamp_server.startup.options import ServeOptions
from saeclamp_server.startup.preflight import open_saes, read_model_info
from saeclamp_server.trace import Trace
from saeclamp_server.vectors import VectorSite, vector_sites


class ServePlan(NamedTuple):
    """A model with the SAEs, the sites for vectors and the stores that are to be served."""

    options: ServeOptions
    model: ModelInfo
    saes: Mapping[str, SAEEntry]
    places: tuple[VectorSite, ...]
    """Sites at which vectors can sit."""
    database: Database
    trace: Trace | None


def make_plan(options: ServeOptions) -> ServePlan:
    """Find, read and check all that can be before the engine starts. Raises UserError."""
    # first, because a file that cannot be written is found at once, and all else may download
    trace = Trace(options.trace) if options.trace is not None else None
    if options.model != PACKAGED_MODEL and "bundled" in options.saes:
        raise StartupError(f"The bundled SAE was trained on {PACKAGED_MODEL} and serves no other model.")
    if options.model == PACKAGED_MODEL:
        saes = open_saes(options.saes)  # first, because the model may have to be converted
        model = read_model_info(str(prepared_model()))
    else:
        model = read_model_info(
            options.model
        )  # first, because SAEs may be downloaded for a model that cannot be steered
        saes = open_saes(options.saes)
    check_compatible(saes, model)
    places = vector_sites(options.vector_sites, options.max_vectors, saes, model)
    return ServePlan(options, model, saes, places, _open_database(options), trace)


def _open_database(options: ServeOptions) -> Database:
    try:
        database = Database(options.variants or default_url())
    except DatabaseError as exc:
        # one of a fleet must not be told to take another
        other = "" if options.fleet is not None else " Name another one with --variants URL."
        raise StartupError(f"{exc}{other}") from exc
    if options.fleet is not None:
        check_database(database)
        if os.environ.get("VLLM_ENABLE_RESPONSES_API_STORE", "0") not in ("", "0"):
            raise StartupError(
                "VLLM_ENABLE_RESPONSES_API_STORE keeps answers in one server, where the others of a fleet cannot find them: "
                "unset it."
            )
    return database
