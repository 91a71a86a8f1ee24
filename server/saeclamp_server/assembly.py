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
from saeclamp_server.api.features import FeatureSearch, load_served_saes
from saeclamp_server.api.model_share import CellBudget
from saeclamp_server.api.openai import cut_short, early_checks, responses_and_messages
from saeclamp_server.api.openai.sequence_tracker import SequenceTracker
from saeclamp_server.api.openai.vllm_model_client import VLLMModelClient
from saeclamp_server.app import build_steering_app
from saeclamp_server.engine.client import DecoderQueryClient, PromptMeanClient, ReportFetcher
from saeclamp_server.startup.plan import ServePlan
from saeclamp_server.startup.sae_quick_check import check_saes_on_model
from saeclamp_server.startup.self_test import run_self_test
from saeclamp_server.startup.trusted_labels import labels_matching_weights
from saeclamp_server.startup.vllm_args import sample_ids
from saeclamp_server.steering import SteeringContext
from saeclamp_server.steering.admission import Admission
from saeclamp_server.steering.dose import MAX_DOSE
from saeclamp_server.variants import VariantRegistry
from saeclamp_server.vectors import VectorRegistry, VectorStorage, default_folder


async def assemble_app(engine: Any, args: Namespace, plan: ServePlan, say: Callable[[str], None]) -> FastAPI:
    """
    Check that the engine steers and that SAEs fit, and build the app.

    say: is told what takes time
    Raises StartupError.
    """
    saes, options = plan.saes, plan.options
    await run_self_test(engine, saes, plan.places)
    measured = await check_saes_on_model(engine, saes, sample_ids(args), options.allow_unverified, say)
    norms = {name: of.norms for name, of in measured.items()}
    labels = await labels_matching_weights(engine, saes, say)
    vectors = VectorRegistry(
        plan.places, norms, VectorStorage(options.vectors or default_folder(options.model)), engine
    )
    await vectors.load(say)
    tasks = await engine.get_supported_tasks()
    drain = Drain()
    app = build_steering_app(args, tasks, engine.model_config, drain, options.max_body)
    state = app.state
    state.drain = drain
    max_acts = {name: opened.max_acts for name, opened in labels.items()}
    max_dose = MAX_DOSE if options.max_dose is None else options.max_dose
    served = SteeringContext(saes, norms, max_acts, max_dose, options.max_dose is not None, vectors)
    state.served_saes = load_served_saes(saes, norms, {name: of.fit for name, of in measured.items()}, labels, say)
    state.search = FeatureSearch(state.served_saes, served.max_act)
    state.served = replace(served, describe=state.search.description)
    # embedding takes minutes for a large SAE, and searches by words until it is done
    threading.Thread(target=state.search.prepare, args=(say,), daemon=True).start()
    state.admission = Admission(options.max_features, options.max_waiting, metrics.WAIT.observe)
    metrics.observe_queue(state.admission)
    state.sequences, state.reports, state.trace = SequenceTracker(), ReportFetcher(engine), plan.trace
    state.sequences.listen(engine.output_processor)
    responses_and_messages.listen(engine)
    await init_app_state(engine, state, args, tasks)
    await early_checks.check_before_answers(state, engine)
    error_handlers.say_errors_in_messages(state)
    cut_short.say_what_was_cut_short(state)
    bases = [path.name for path in state.openai_serving_models.base_model_paths]
    state.variants = VariantRegistry(plan.store, state.served, bases, lambda: state.openai_serving_models.lora_requests)
    state.model, state.directions, state.room = VLLMModelClient(state), DecoderQueryClient(engine), CellBudget()
    state.streams = PromptMeanClient(engine)
    return app
