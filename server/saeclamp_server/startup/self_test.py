"""Before the server listens: plant a known program in the real engine; see that it acts, and that nothing else does."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from vllm import SamplingParams

from saeclamp_saes import SAEEntry
from saeclamp_server.engine.client import ReportFetcher, call_all_workers, data_parallel_ranks
from saeclamp_server.engine.worker_config import CONFIG_KEY
from saeclamp_server.model_info import StartupError
from saeclamp_server.steering.program import EXTRA_ARGS_KEY, EditSpec, SteeringProgram
from saeclamp_server.vector_names import VECTOR
from saeclamp_server.vectors import VectorSite

NUM_TOKENS = 12
NUM_FEATURES = 8
TOLERANCE = 1e-3
"""Difference of logprobs: above what repeating a forward changes, far below what the probe does."""
VALUE = 1e4
"""Activation that no SAE reaches, so that the effect is visible whatever the features are."""


async def run_self_test(engine: Any, saes: Mapping[str, SAEEntry], places: Sequence[VectorSite] = ()) -> None:
    """
    Raise StartupError unless every SAE's edits change the model's output, and only for the request that asked.

    places: sites at which vectors can sit; whatever is in their first rows is lost
    """
    probes = {f"SAE {sae.name!r}": await _probe(engine, sae) for sae in saes.values()}
    probes |= {f"vectors at {place.site}": await _vector_probe(engine, place) for place in places}
    for rank in data_parallel_ranks(engine):
        await _check_engine(engine, probes, rank)


async def _check_engine(engine: Any, probes: Mapping[str, SteeringProgram], rank: int | None) -> None:
    """Check one of the data-parallel engines."""
    before = await _first_logprobs(engine, None, rank)
    for what, program in probes.items():
        key = uuid.uuid4().hex
        steered = await _first_logprobs(engine, {"key": key, "program": program.to_json()}, rank)
        _check(what, before, steered, [*(await ReportFetcher(engine).fetch(key)).values()])
    if _differs(await _first_logprobs(engine, None, rank), before):
        raise StartupError("Self-test: an unsteered request was changed by a steered one before it.")


async def _probe(engine: Any, sae: SAEEntry) -> SteeringProgram:
    indices = (await engine.collective_rpc("strongest_features", args=(sae.name, NUM_FEATURES)))[0]
    edits = tuple(EditSpec(sae.name, index, "add", VALUE) for index in indices)
    return SteeringProgram(edits, ((sae.name, sae.sha256),))


async def _vector_probe(engine: Any, place: VectorSite) -> SteeringProgram:
    """Plant a direction that no request can name, with a blank in its name."""
    name, sha256 = f"{VECTOR}self-test {place.site}", "none"
    direction = torch.nn.functional.normalize(
        torch.randn(place.width, generator=torch.Generator().manual_seed(0)), dim=0
    )
    held = (place.bank_name, 0, name, sha256, direction.numpy().tobytes())
    await call_all_workers(engine, "load_vector", *held)
    return SteeringProgram((EditSpec(name, 0, "add", VALUE),), ((name, sha256),))


def _check(what: str, before: dict[int, float], steered: dict[int, float], reports: list[dict[str, Any]]) -> None:
    if len(reports) != 1:
        raise StartupError(f"Self-test of {what}: the engine made {len(reports)} reports instead of one.")
    if reports[0]["failure"] is not None:
        raise StartupError(f"Self-test of {what}: {reports[0]['failure']}.")
    touched = [tally["prompt"] for tally in reports[0]["tallies"]]
    if any(count != NUM_TOKENS - 1 for count in touched):  # position 0 is an attention sink, and is never edited here
        raise StartupError(f"Self-test of {what}: {touched} positions were edited, not {NUM_TOKENS - 1} each.")
    if not _differs(steered, before):
        raise StartupError(f"Self-test of {what}: its edits do not change the model's output.")


def _differs(one: dict[int, float], other: dict[int, float]) -> bool:
    return one.keys() != other.keys() or any(abs(one[token] - other[token]) > TOLERANCE for token in one)


async def _first_logprobs(engine: Any, payload: dict[str, Any] | None, rank: int | None) -> dict[int, float]:
    params = SamplingParams(
        temperature=0,
        max_tokens=1,
        logprobs=5,
        skip_reading_prefix_cache=True,
        extra_args=None if payload is None else {EXTRA_ARGS_KEY: payload},
    )
    prompt = {"prompt_token_ids": _ordinary_ids(engine), "cache_salt": f"{EXTRA_ARGS_KEY}:self-test:{uuid.uuid4().hex}"}
    answer = engine.generate(prompt, params, f"self-test-{uuid.uuid4().hex}", data_parallel_rank=rank)
    outputs = [output async for output in answer]
    logprobs = outputs[-1].outputs[0].logprobs[0]
    return {token: entry.logprob for token, entry in logprobs.items()}


def _ordinary_ids(engine: Any) -> list[int]:
    config = engine.vllm_config
    special = set(config.additional_config[CONFIG_KEY]["special_ids"])
    ordinary = (index for index in range(config.model_config.get_vocab_size()) if index not in special)
    return [next(ordinary) for _ in range(NUM_TOKENS)]
