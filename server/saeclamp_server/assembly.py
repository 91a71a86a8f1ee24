"""Everything a request meets, made once the engine runs and has been found to steer: the app and its state."""

from __future__ import annotations

import threading
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fastapi import FastAPI
from vllm.entrypoints.launchers.api_server.app_state import init_app_state

from saeclamp_server.api import error_handlers, metrics
from saeclamp_server.api.drain import Drain
from saeclamp_server.api.features import FeatureSearch, known_saes
from saeclamp_server.api.model_share import Room
from saeclamp_server.api.openai import cut_short, early_checks, responses_and_messages
from saeclamp_server.api.openai.sequence_tracker import Sequences
from saeclamp_server.api.openai.vllm_model_client import ServedModel
from saeclamp_server.app import create_app
from saeclamp_server.engine.client import DecoderQueryClient, PromptMeanClient, ReportFetcher
from saeclamp_server.startup.plan import Plan
from saeclamp_server.startup.sae_quick_check import check_that_saes_fit
from saeclamp_server.startup.self_test import check_that_steering_works
from saeclamp_server.startup.trusted_labels import trusted_labels
from saeclamp_server.startup.vllm_args import sample_ids
from saeclamp_server.steering import Served
from saeclamp_server.steering.admission import Admission
from saeclamp_server.steering.dose import MAX_DOSE
from saeclamp_server.variants import Variants
from saeclamp_server.vectors import VectorFolder, Vectors, default_folder


async def assembled(engine: Any, args: Namespace, plan: Plan, say: Callable[[str], None]) -> FastAPI:
    """
    Check that the engine steers and that SAEs fit, and build the app.

    say: is told what takes time
    Raises StartupError.
    """
    saes, options = plan.saes, plan.options
    await check_that_steering_works(engine, saes, plan.places)
    measured = await check_that_saes_fit(engine, saes, sample_ids(args), options.allow_unverified, say)
    lengths = {name: of.lengths for name, of in measured.items()}
    labels = await trusted_labels(engine, saes, say)
    vectors = Vectors(plan.places, lengths, VectorFolder(options.vectors or default_folder(options.model)), engine)
    await vectors.load(say)
    tasks = await engine.get_supported_tasks()
    drain = Drain()
    app = create_app(args, tasks, engine.model_config, drain, options.max_body)
    state = app.state
    state.drain = drain
    max_acts = {name: opened.max_acts for name, opened in labels.items()}
    max_dose = MAX_DOSE if options.max_dose is None else options.max_dose
    served = Served(saes, lengths, max_acts, max_dose, options.max_dose is not None, vectors)
    state.known = known_saes(saes, lengths, {name: of.fit for name, of in measured.items()}, labels, say)
    state.search = FeatureSearch(state.known, served.max_act)
    state.served = replace(served, describe=state.search.description)
    # embedding takes minutes for a large SAE, and searches by words until it is done
    threading.Thread(target=state.search.prepare, args=(say,), daemon=True).start()
    state.admission = Admission(options.max_features, options.max_waiting, metrics.WAIT.observe)
    metrics.watch(state.admission)
    state.sequences, state.reports, state.trace = Sequences(), ReportFetcher(engine), plan.trace
    state.sequences.listen(engine.output_processor)
    responses_and_messages.listen(engine)
    await init_app_state(engine, state, args, tasks)
    await early_checks.check_before_answers(state, engine)
    error_handlers.say_errors_in_messages(state)
    cut_short.say_what_was_cut_short(state)
    bases = [path.name for path in state.openai_serving_models.base_model_paths]
    state.variants = Variants(plan.store, state.served, bases, lambda: state.openai_serving_models.lora_requests)
    state.model, state.directions, state.room = ServedModel(state), DecoderQueryClient(engine), Room()
    state.streams = PromptMeanClient(engine)
    return app
