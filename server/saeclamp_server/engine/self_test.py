"""Before the server listens: plant a known program in the real engine; see that it acts, and that nothing else does."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from vllm import SamplingParams

from saeclamp_saes import SAEEntry
from saeclamp_server.engine.settings import CONFIG_KEY
from saeclamp_server.fit import StartupError
from saeclamp_server.program import EXTRA_ARGS_KEY, Edit, SteeringProgram

NUM_TOKENS = 12
NUM_FEATURES = 8
TOLERANCE = 1e-3
"""In logprob: above what repeating a forward changes, far below what the probe does."""
VALUE = 1e4
"""Activation that no SAE reaches, so that the effect is visible whatever the features are."""


async def check_that_steering_works(engine: Any, saes: Mapping[str, SAEEntry]) -> None:
    """Raise StartupError unless every SAE's edits change the model's output, and only for the request that asked."""
    before = await _first_logprobs(engine, None)
    for sae in saes.values():
        indices = (await engine.collective_rpc("strongest_features", args=(sae.name, NUM_FEATURES)))[0]
        program = _probe(sae, indices)
        key = uuid.uuid4().hex
        steered = await _first_logprobs(engine, {"key": key, "program": program.to_json()})
        reports = (await engine.collective_rpc("steering_reports", args=(key,)))[0]
        _check(sae, before, steered, [*reports.values()])
    if _differs(await _first_logprobs(engine, None), before):
        raise StartupError("Self-test: an unsteered request was changed by a steered one before it.")


def _probe(sae: SAEEntry, indices: list[int]) -> SteeringProgram:
    edits = tuple(Edit(sae.name, index, "add", VALUE) for index in indices)
    return SteeringProgram(edits, ((sae.name, sae.sha256),))


def _check(sae: SAEEntry, before: dict[int, float], steered: dict[int, float], reports: list[dict[str, Any]]) -> None:
    if len(reports) != 1:
        raise StartupError(f"Self-test of SAE {sae.name!r}: the engine made {len(reports)} reports instead of one.")
    if reports[0]["failure"] is not None:
        raise StartupError(f"Self-test of SAE {sae.name!r}: {reports[0]['failure']}.")
    touched = [tally["prompt"] for tally in reports[0]["tallies"]]
    if any(count != NUM_TOKENS - 1 for count in touched):
        raise StartupError(
            f"Self-test of SAE {sae.name!r}: {touched} positions were edited, not {NUM_TOKENS - 1} each."
        )
    if not _differs(steered, before):
        raise StartupError(f"Self-test of SAE {sae.name!r}: its edits do not change the model's output.")


def _differs(one: dict[int, float], other: dict[int, float]) -> bool:
    return one.keys() != other.keys() or any(abs(one[token] - other[token]) > TOLERANCE for token in one)


async def _first_logprobs(engine: Any, payload: dict[str, Any] | None) -> dict[int, float]:
    params = SamplingParams(
        temperature=0,
        max_tokens=1,
        logprobs=5,
        skip_reading_prefix_cache=True,
        extra_args=None if payload is None else {EXTRA_ARGS_KEY: payload},
    )
    prompt = {"prompt_token_ids": _ordinary_ids(engine), "cache_salt": f"{EXTRA_ARGS_KEY}:self-test:{uuid.uuid4().hex}"}
    outputs = [output async for output in engine.generate(prompt, params, f"self-test-{uuid.uuid4().hex}")]
    logprobs = outputs[-1].outputs[0].logprobs[0]
    return {token: entry.logprob for token, entry in logprobs.items()}


def _ordinary_ids(engine: Any) -> list[int]:
    config = engine.vllm_config
    special = set(config.additional_config[CONFIG_KEY]["special_ids"])
    ordinary = (index for index in range(config.model_config.get_vocab_size()) if index not in special)
    return [next(ordinary) for _ in range(NUM_TOKENS)]
