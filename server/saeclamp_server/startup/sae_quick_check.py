"""Before the server listens: run real text through the engine and see that every SAE reconstructs what it reads there."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from vllm import SamplingParams

from saeclamp_saes import SAEEntry
from saeclamp_server.engine.client import data_parallel_ranks
from saeclamp_server.model_info import StartupError
from saeclamp_server.site_norms import QuickCheckResult, SiteNorms
from saeclamp_server.steering.program import EXTRA_ARGS_KEY

logger = logging.getLogger("saeclamp.server")

CHUNK_TOKENS = 256
MAX_TOKENS = 2048
SECONDS = 10.0
"""Seconds after which no further chunk is run; the first one always is."""


async def check_saes_on_model(
    engine: Any,
    saes: Mapping[str, SAEEntry],
    text_ids: Sequence[int],
    allow_unverified: bool,
) -> dict[str, QuickCheckResult]:
    """
    Return what was measured, by the name of the SAE or of the vector bank.

    text_ids: token ids of ordinary text, without special tokens
    Raises StartupError with a hint for an SAE that does not fit, unless unverified ones are allowed.
    """
    chunks = _chunks(text_ids, engine.vllm_config.model_config.max_model_len - 1)
    rank = data_parallel_ranks(engine)[0]  # all chunks to one engine: each records only what it runs itself
    await engine.collective_rpc("start_recording")
    started, run = time.monotonic(), []
    for chunk in chunks:
        await _prefill(engine, chunk, rank)
        run.append(chunk)
        if time.monotonic() - started > SECONDS:
            break
    measured, sink_norms = (await engine.collective_rpc("quick_check", args=(run,)))[0]
    await engine.collective_rpc("set_sink_norms", args=(sink_norms,))
    for name in saes:
        fit = measured[name]["fit"]
        if fit["problem"] is not None and not allow_unverified:
            what = "does not fit this model" if fit["explained_variance"] is not None else "cannot be verified"
            raise StartupError(
                f"SAE {name!r} {what}: {fit['problem']} "
                "Run `saeclamp sae verify` for the whole picture; --allow-unverified-sae serves it all the same."
            )
    for name in saes:
        fit = measured[name]["fit"]
        logger.log(logging.INFO if fit["problem"] is None else logging.WARNING, _line(name, fit))
    return {
        name: QuickCheckResult(SiteNorms(**figures["norms"]), figures.get("fit")) for name, figures in measured.items()
    }


def _chunks(ids: Sequence[int], max_tokens: int) -> list[list[int]]:
    size = min(CHUNK_TOKENS, max_tokens)
    return [list(ids[first : first + size]) for first in range(0, min(len(ids), MAX_TOKENS), size)]


async def _prefill(engine: Any, ids: list[int], rank: int | None) -> None:
    # nothing may come out of the prefix cache, because what is not computed is not recorded
    params = SamplingParams(temperature=0, max_tokens=1, skip_reading_prefix_cache=True)
    name = f"fit-{uuid.uuid4().hex}"
    prompt = {"prompt_token_ids": ids, "cache_salt": f"{EXTRA_ARGS_KEY}:{name}"}
    async for _ in engine.generate(prompt, params, name, data_parallel_rank=rank):
        pass


def _line(name: str, fit: dict[str, Any]) -> str:
    if fit["explained_variance"] is None:
        return f"SAE {name}: not verified, {fit['problem']}"
    figures = (
        f"SAE {name}: explains {fit['explained_variance']:.2f} of the variance of {fit['num_tokens']} tokens, "
        f"{fit['l0']:.0f} features active per token"
    )
    return figures if fit["problem"] is None else f"{figures}; UNVERIFIED: {fit['problem']}"
