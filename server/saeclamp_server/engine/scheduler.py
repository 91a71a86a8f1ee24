"""What saeclamp adds to vLLM's scheduler: blocks of the prefix cache are shared by what was computed alike."""

from __future__ import annotations

import secrets
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from saeclamp_server.engine.block_keys import EditedBlocks, steered_hasher
from saeclamp_server.program import EXTRA_ARGS_KEY, SteeringProgram


class _Steering:
    """Mixed into vLLM's schedulers."""

    def __init__(self, *args: Any, block_size: int, hash_block_size: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, block_size=block_size, hash_block_size=hash_block_size, **kwargs)  # type: ignore[call-arg]
        self._hashed_tokens = hash_block_size or block_size
        self._secret = secrets.token_bytes(32)

    def add_request(self, request: Request) -> None:
        params = request.sampling_params
        if params is not None and params.extra_args and EXTRA_ARGS_KEY in params.extra_args:
            self._key_blocks(request, params.extra_args[EXTRA_ARGS_KEY])
        super().add_request(request)  # type: ignore[misc]

    def _key_blocks(self, request: Request, payload: Any) -> None:
        hasher = request._block_hasher
        if hasher is None:  # there is no prefix cache
            return
        request.block_hashes = []
        try:
            program = SteeringProgram.from_json(payload["program"])
            edited = EditedBlocks(program, request.num_prompt_tokens, self._secret)
            request._block_hasher = steered_hasher(hasher, edited, self._hashed_tokens)
            request.update_block_hashes()
        except Exception:  # noqa: BLE001 (the boundary of one request: the worker reports what is wrong with its program)
            request._block_hasher, request.block_hashes = hasher, []
            request.cache_salt = secrets.token_hex(32)  # it shares nothing
            request.update_block_hashes()


class SteeringScheduler(_Steering, Scheduler):
    """vLLM's scheduler, for steered requests."""


class SteeringAsyncScheduler(_Steering, AsyncScheduler):
    """vLLM's asynchronous scheduler, for steered requests."""


def make_scheduler(*args: Any, vllm_config: Any, **kwargs: Any) -> Scheduler:
    """Make the one that vLLM's configuration asks for; vLLM calls this as if it were the scheduler's class."""
    kind = SteeringAsyncScheduler if vllm_config.scheduler_config.async_scheduling else SteeringScheduler
    return kind(*args, vllm_config=vllm_config, **kwargs)
