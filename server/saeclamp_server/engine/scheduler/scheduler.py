"""
EngineCore process: vLLM's scheduler, for steered requests.

It gives steered requests their own hashes of KV blocks, so that they share only what was computed under the same edits;
holds generated tokens back until a step report says that the model has read them; and ends requests that cannot be steered,
or that a rule ends.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.outputs import LogprobsLists
from vllm.v1.request import Request, RequestStatus

from saeclamp_server.engine.lifeline import begin_serving, tie_to_server
from saeclamp_server.engine.scheduler.grammar_limits import BECAME_TOO_SLOW, limit_grammars
from saeclamp_server.engine.scheduler.output_gate import Finish, OutputGate, PendingToken
from saeclamp_server.engine.scheduler.prefix_cache import BlockEdits, steering_block_hasher
from saeclamp_server.engine.scheduler.tainted_blocks import TaintedBlocks
from saeclamp_server.engine.step_report import ATTRIBUTE, WIPED, RequestStepReport
from saeclamp_server.steering.program import ABORTED, EXTRA_ARGS_KEY, SteeringProgram
from saeclamp_server.vllm_compat import fail_grammar

REASONS: dict[Any, Finish] = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}
"""vLLM's reasons, as the output gate names them; all further ones are `other` to it."""


class GatedRequest:
    """A request with an output gate, and the parts of vLLM's outputs that wait with its tokens."""

    def __init__(self, program: SteeringProgram, request: Request) -> None:
        max_tokens = request.max_tokens - program.delays_output  # the API adds one, to be read and dropped
        self.gate: OutputGate[LogprobsLists | None] = OutputGate(program, request.num_prompt_tokens, max_tokens)
        self._waiting: list[EngineCoreOutput] = []

    def keep_output(self, output: EngineCoreOutput) -> None:
        """Keep an output that does not leave, for what it carries besides tokens."""
        self._waiting.append(output)

    def merge_into(self, output: EngineCoreOutput) -> None:
        """Move what the kept outputs carry into one that leaves: logprobs of the prompt, prefill statistics, events."""
        # vLLM gives prompt logprobs and prefill statistics once, with a request's first output
        for earlier in self._waiting:
            output.new_prompt_logprobs_tensors = (
                earlier.new_prompt_logprobs_tensors or output.new_prompt_logprobs_tensors
            )
            output.prefill_stats = earlier.prefill_stats or output.prefill_stats
            output.events = [*(earlier.events or []), *(output.events or [])] or None
        self._waiting = []


class SteeringSchedulerMixin:
    """Mixin that makes a scheduler of vLLM's steer."""

    requests: dict[str, Request]
    structured_output_manager: Any
    sched_step_seq: int
    processed_step_seq: int

    def __init__(self, *args: Any, block_size: int, hash_block_size: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, block_size=block_size, hash_block_size=hash_block_size, **kwargs)  # type: ignore[call-arg]
        # vLLM hashes in units of their own where groups of layers have blocks of different sizes
        self._hashed_tokens = hash_block_size or block_size
        # per engine, so that hashes of edited blocks cannot be computed from outside; see `BlockEdits`
        self._secret = secrets.token_bytes(32)
        self._gated: dict[str, GatedRequest] = {}
        # a request may leave while its step runs, and whether that step has left NaN in its blocks is known only afterwards:
        # with this, vLLM gives the blocks to nobody else before. vLLM itself sets it for KV connectors alone
        self.defer_block_free = True
        self._tainted = TaintedBlocks(self.kv_cache_manager)  # type: ignore[attr-defined]
        limit_grammars(self.structured_output_manager, partial(fail_grammar, self, message=BECAME_TOO_SLOW))

    def add_request(self, request: Request) -> None:
        begin_serving()
        params = request.sampling_params
        if params is not None and params.extra_args and EXTRA_ARGS_KEY in params.extra_args:
            # before vLLM looks for cached blocks by the request's hashes
            self._add_steered(request, params.extra_args[EXTRA_ARGS_KEY])
        super().add_request(request)  # type: ignore[misc]

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        scheduler_output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        # after scheduling, which frees blocks of preempted requests and may give them away in this very step
        setattr(scheduler_output, WIPED, self._tainted.take())
        return scheduler_output

    def _free_request_blocks(self, request: Request) -> None:
        # asked before vLLM frees or defers: then it has forgotten which blocks were the request's
        if not self._request_blocks_can_be_freed(request):  # type: ignore[attr-defined]
            self._tainted.note_leaving(request.request_id, self.sched_step_seq)
        super()._free_request_blocks(request)  # type: ignore[misc]
        self._tainted.sweep()

    def _drain_deferred_frees(self) -> None:
        super()._drain_deferred_frees()  # type: ignore[misc]
        self._tainted.sweep()

    def _add_steered(self, request: Request, payload: Any) -> None:
        # vLLM has hashed the prompt when it made the request, without the edits
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
        # these three before vLLM's own update, which cuts tokens, forgets ended requests and gives their blocks back
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
        # vLLM makes no output for a request that has no new token, but the gate may let one go then, or a rule may end it
        by_request = last_outputs(outputs, clients.keys())
        for name, client in clients.items():
            output = by_request.get(name)
            if report[name].failure is not None:
                last = output or EngineCoreOutput(request_id=name, new_token_ids=[])
                # what a failed step has sampled may come from NaN
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
        """Pass a step's output through the request's gate: returns nothing, an output, or an output and the end."""
        gated = self._gated[name]
        tokens = output.new_token_ids if output else []
        rows = _rows(output.new_logprobs if output else None, len(tokens))
        finish = REASONS.get(output.finish_reason, "other") if output and output.finished else None
        released = gated.gate.step(report, num_rejected, tokens, rows, finish)
        if not released.waiting and not released.finish:
            if output is not None:
                gated.keep_output(output)
            return []
        leaving = output or EngineCoreOutput(request_id=name, new_token_ids=[])
        leaving.new_token_ids = [waiting.token for waiting in released.waiting]
        leaving.new_logprobs = _concat_rows(released.waiting)
        if released.readout is not None:
            # a field of arbitrary content, which vLLM takes from here to the API process
            leaving.kv_transfer_params = {**(leaving.kv_transfer_params or {}), EXTRA_ARGS_KEY: vars(released.readout)}
        gated.merge_into(leaving)
        if released.finish == "aborted":
            return self._finish_request(leaving, ABORTED)
        # vLLM's own reason is of the one token more that was computed: it may have stopped there, where the answer was full
        if released.finish == "length":
            leaving.finish_reason, leaving.stop_reason = FinishReason.LENGTH, None
        return [leaving]

    def _finish_request(self, last: EngineCoreOutput, stop_reason: str | None) -> list[EngineCoreOutput]:
        """
        End a request now, after the tokens of `last`.

        Where it has any, the end is an output of its own: vLLM takes the last token of an output that ends for the one that
        stopped it.
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
        """Put the outputs that leave in the place of vLLM's output."""
        if output is None and leaving:
            outputs.setdefault(client, EngineCoreOutputs()).outputs.extend(leaving)
        elif output is not None:
            part = outputs[client].outputs
            # by identity: `==` would compare arrays of logprobs
            at = next(n for n, other in enumerate(part) if other is output)
            part[at : at + 1] = leaving


def last_outputs(outputs: Mapping[int, EngineCoreOutputs], names: Collection[str]) -> dict[str, EngineCoreOutput]:
    """Find the last output of a step of each of some requests, and take out what was before it."""
    found: dict[str, EngineCoreOutput] = {}
    for part in outputs.values():
        for output in [*part.outputs]:
            earlier = found.get(output.request_id)
            if earlier is not None:
                # vLLM puts the error by which a grammar ends a request behind the tokens of the same step, which would
                # pass the gate unread
                part.outputs[:] = [other for other in part.outputs if other is not earlier]
            if output.request_id in names:
                found[output.request_id] = output
    return found


def _num_rejected(scheduler_output: Any, model_runner_output: Any) -> dict[str, int]:
    """Count the drafts of each request that the model rejected, by request id; before vLLM cuts the tokens behind a stop."""
    sampled, index = model_runner_output.sampled_token_ids, model_runner_output.req_id_to_index
    drafts: Mapping[str, list[int]] = scheduler_output.scheduled_spec_decode_tokens
    return {
        # one token more than the accepted drafts is sampled: the model's own, behind the last accepted one
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
    """Make the scheduler that vLLM's configuration asks for; vLLM calls this as if it were the scheduler's class."""
    tie_to_server()  # the engine's process may have no worker in it
    kind = SteeringAsyncScheduler if vllm_config.scheduler_config.async_scheduling else SteeringScheduler
    return kind(*args, vllm_config=vllm_config, **kwargs)
