"""
EngineCore process: what saeclamp adds to vLLM's scheduler.

Blocks of the prefix cache are shared by what was computed alike; tokens leave when what the worker tells of them allows it;
a request that cannot be steered, or that a rule ends, is ended here.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.outputs import LogprobsLists
from vllm.v1.request import Request, RequestStatus

from saeclamp_server.engine.lifeline import begin_serving, tie_to_server
from saeclamp_server.engine.scheduler.grammar_limits import limit_grammars
from saeclamp_server.engine.scheduler.output_gate import Finish, OutputGate, PendingToken
from saeclamp_server.engine.scheduler.prefix_cache import BlockEdits, steering_block_hasher
from saeclamp_server.engine.scheduler.tainted_blocks import TaintedBlocks
from saeclamp_server.engine.step_report import ATTRIBUTE, WIPED, RequestStepReport
from saeclamp_server.steering.program import ABORTED, EXTRA_ARGS_KEY, SteeringProgram

REASONS: dict[Any, Finish] = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}


class GatedRequest:
    """A request whose tokens may wait, and what of vLLM's output waits with them."""

    def __init__(self, program: SteeringProgram, request: Request) -> None:
        max_tokens = request.max_tokens - program.delays_output  # the API adds one, to be read and dropped
        self.holding: OutputGate[LogprobsLists | None] = OutputGate(program, request.num_prompt_tokens, max_tokens)
        self._waiting: list[EngineCoreOutput] = []

    def keep_output(self, output: EngineCoreOutput) -> None:
        """Keep what an output that does not leave holds beside its tokens."""
        self._waiting.append(output)

    def merge_into(self, output: EngineCoreOutput) -> None:
        """Give an output what waited, which is of the first step: logprobs of the prompt, figures, events."""
        for earlier in self._waiting:
            output.new_prompt_logprobs_tensors = (
                earlier.new_prompt_logprobs_tensors or output.new_prompt_logprobs_tensors
            )
            output.prefill_stats = earlier.prefill_stats or output.prefill_stats
            output.events = [*(earlier.events or []), *(output.events or [])] or None
        self._waiting = []


class SteeringSchedulerMixin:
    """Mixed into vLLM's schedulers."""

    requests: dict[str, Request]
    grammar_compile_error_reqs: set[str]
    """vLLM ends these at the next step."""
    structured_output_manager: Any
    sched_step_seq: int
    processed_step_seq: int

    def __init__(self, *args: Any, block_size: int, hash_block_size: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, block_size=block_size, hash_block_size=hash_block_size, **kwargs)  # type: ignore[call-arg]
        self._hashed_tokens = hash_block_size or block_size
        self._secret = secrets.token_bytes(32)
        self._gated: dict[str, GatedRequest] = {}
        # a request may leave while its step runs, and whether that step has left NaN in its blocks is known only afterwards:
        # with this, vLLM gives them to nobody else before
        self.defer_block_free = True
        self._tainted = TaintedBlocks(self.kv_cache_manager)  # type: ignore[attr-defined]
        limit_grammars(self.structured_output_manager, self.grammar_compile_error_reqs.add)

    def add_request(self, request: Request) -> None:
        begin_serving()
        params = request.sampling_params
        if params is not None and params.extra_args and EXTRA_ARGS_KEY in params.extra_args:
            self._add_steered(request, params.extra_args[EXTRA_ARGS_KEY])
        super().add_request(request)  # type: ignore[misc]

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        scheduler_output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        setattr(scheduler_output, WIPED, self._tainted.take())
        return scheduler_output

    def _free_request_blocks(self, request: Request) -> None:
        if not self._request_blocks_can_be_freed(request):  # type: ignore[attr-defined]
            self._tainted.note_leaving(request.request_id, self.sched_step_seq)
        super()._free_request_blocks(request)  # type: ignore[misc]
        self._tainted.sweep()

    def _drain_deferred_frees(self) -> None:
        super()._drain_deferred_frees()  # type: ignore[misc]
        self._tainted.sweep()

    def _add_steered(self, request: Request, payload: Any) -> None:
        hasher = request._block_hasher
        unsteered, request.block_hashes = request.block_hashes, []
        try:
            program = SteeringProgram.from_json(payload["program"])
            if program.reports_steps:
                self._gated[request.request_id] = GatedRequest(program, request)
            if hasher is not None:  # else there is no prefix cache
                edited = BlockEdits(program, request.num_prompt_tokens, self._secret)
                request._block_hasher = steering_block_hasher(hasher, edited, self._hashed_tokens, unsteered)
                request.update_block_hashes()
        except (LookupError, TypeError, ValueError):  # no program; the worker reports what is wrong with it
            request._block_hasher, request.block_hashes = hasher, []
            request.cache_salt = secrets.token_hex(32)  # it shares nothing
            request.update_block_hashes()

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> dict[int, EngineCoreOutputs]:
        report: dict[str, RequestStepReport] = getattr(model_runner_output, ATTRIBUTE, {})
        num_rejected = _num_rejected(scheduler_output, model_runner_output)
        clients = {name: self.requests[name].client_index for name in report if name in self.requests}
        lost = [block for name in report if report[name].failure is not None for block in self._tainted.ids_of(name)]
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(  # type: ignore[misc]
            scheduler_output, model_runner_output
        )
        self._tainted.taint(lost)
        self._tainted.forget_left(self.processed_step_seq)
        if not report and not self._gated:
            return outputs
        by_request = {output.request_id: output for part in outputs.values() for output in part.outputs}
        for name, client in clients.items():
            output = by_request.get(name)
            if report[name].failure is not None:
                last = output or EngineCoreOutput(request_id=name, new_token_ids=[])
                last.new_token_ids, last.new_logprobs = [], None
                self._replace_output(outputs, client, output, self._finish_request(last, None))
            elif name in self._gated:
                ready = self._gate(name, report[name], num_rejected.get(name, 0), output)
                self._replace_output(outputs, client, output, ready)
        self._gated = {name: gated for name, gated in self._gated.items() if name in self.requests}
        return outputs

    def _gate(
        self, name: str, report: RequestStepReport, num_rejected: int, output: EngineCoreOutput | None
    ) -> list[EngineCoreOutput]:
        """What leaves of a held request after a step: nothing, an output, or an output and the end."""
        gated = self._gated[name]
        tokens = output.new_token_ids if output else []
        rows = _rows(output.new_logprobs if output else None, len(tokens))
        finish = REASONS.get(output.finish_reason, "other") if output and output.finished else None
        released = gated.holding.step(report, num_rejected, tokens, rows, finish)
        if not released.waiting and not released.finish:
            if output is not None:
                gated.keep_output(output)
            return []
        leaving = output or EngineCoreOutput(request_id=name, new_token_ids=[])
        leaving.new_token_ids = [waiting.token for waiting in released.waiting]
        leaving.new_logprobs = _concat_rows(released.waiting)
        if released.readout is not None:
            leaving.kv_transfer_params = {**(leaving.kv_transfer_params or {}), EXTRA_ARGS_KEY: vars(released.readout)}
        gated.merge_into(leaving)
        if released.finish == "aborted":
            return self._finish_request(leaving, ABORTED)
        if released.finish == "length":
            leaving.finish_reason, leaving.stop_reason = FinishReason.LENGTH, None
        return [leaving]

    def _finish_request(self, last: EngineCoreOutput, stop_reason: str | None) -> list[EngineCoreOutput]:
        """
        End a request now, behind what `last` brings.

        Where that is tokens, the end is an output of its own: vLLM takes the last token of an output that ends for the one
        that stopped it.
        """
        self.finish_requests(last.request_id, RequestStatus.FINISHED_STOPPED)  # type: ignore[attr-defined]
        end = EngineCoreOutput(request_id=last.request_id, new_token_ids=[]) if last.new_token_ids else last
        last.finish_reason, last.stop_reason = None, None
        end.finish_reason, end.stop_reason = FinishReason.STOP, stop_reason
        return [last] if end is last else [last, end]

    def _replace_output(
        self,
        outputs: dict[int, EngineCoreOutputs],
        client: int,
        output: EngineCoreOutput | None,
        leaving: Sequence[EngineCoreOutput],
    ) -> None:
        """Put what leaves in the place of vLLM's output."""
        if output is None and leaving:
            outputs.setdefault(client, EngineCoreOutputs()).outputs.extend(leaving)
        elif output is not None:
            part = outputs[client].outputs
            at = next(n for n, other in enumerate(part) if other is output)
            part[at : at + 1] = leaving


def _num_rejected(scheduler_output: Any, model_runner_output: Any) -> dict[str, int]:
    """How many of each request's drafts the model did not take; before vLLM cuts the tokens behind a stop."""
    sampled, index = model_runner_output.sampled_token_ids, model_runner_output.req_id_to_index
    drafts: Mapping[str, list[int]] = scheduler_output.scheduled_spec_decode_tokens
    return {
        name: len(tokens) - max(len(sampled[index[name]]) - 1, 0)
        for name, tokens in drafts.items()
        if sampled and name in index
    }


def _rows(logprobs: LogprobsLists | None, num_tokens: int) -> list[LogprobsLists | None]:
    if logprobs is None:
        return [None] * num_tokens
    return [LogprobsLists(*(part[n : n + 1] for part in logprobs[:3]), None) for n in range(num_tokens)]


def _concat_rows(waiting: Sequence[PendingToken[LogprobsLists | None]]) -> LogprobsLists | None:
    rows = [row for _, _, row in waiting if row is not None]
    if not rows:
        return None
    return LogprobsLists(*(np.concatenate(parts) for parts in zip(*(row[:3] for row in rows), strict=True)), None)


class SteeringScheduler(SteeringSchedulerMixin, Scheduler):
    """vLLM's scheduler, for steered requests."""


class SteeringAsyncScheduler(SteeringSchedulerMixin, AsyncScheduler):
    """vLLM's asynchronous scheduler, for steered requests."""


def make_scheduler(*args: Any, vllm_config: Any, **kwargs: Any) -> Scheduler:
    """Make the one that vLLM's configuration asks for; vLLM calls this as if it were the scheduler's class."""
    tie_to_server()  # the engine's process may have no worker in it
    kind = SteeringAsyncScheduler if vllm_config.scheduler_config.async_scheduling else SteeringScheduler
    return kind(*args, vllm_config=vllm_config, **kwargs)
