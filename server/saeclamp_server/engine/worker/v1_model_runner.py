"""
Worker process: the adapter to vLLM's V1 model runner (`GPUModelRunner` and its CPU subclass), which is for CPUs.

`_update_states` says which requests have gone. After `_prepare_inputs` the batch order of the step is fixed and the token
ids are on the device. The step report leaves with the sampled tokens, in what `sample_tokens` returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from vllm.sequence import IntermediateTensors

from saeclamp_server.engine.lifeline import begin_serving
from saeclamp_server.engine.step_report import WIPED
from saeclamp_server.engine.worker.kv_wipe import wipe_blocks
from saeclamp_server.engine.worker.ops import HookState
from saeclamp_server.engine.worker.pipeline_parallel import StageBoundary
from saeclamp_server.engine.worker.program_layout import FOREVER
from saeclamp_server.engine.worker.sampled_tokens import AnswerEnd
from saeclamp_server.engine.worker.steered_steps import (
    KnownRequest,
    SteeredSteps,
    SteeringTables,
    StepInputs,
    with_report,
)


class V1RunnerAdapter:
    """Runs steered steps in one vLLM V1 runner, whose methods it wraps."""

    def __init__(
        self,
        runner: Any,
        tables: SteeringTables,
        sites: Sequence[HookState],
        boundaries: tuple[StageBoundary | None, StageBoundary | None],
    ) -> None:
        """
        sites:      in the order of their numbers, at least one
        boundaries: to the pipeline stages before and behind this one
        """
        self._runner, self._tables = runner, tables
        self._steps = SteeredSteps(tables, sites, self._known, runner.device)
        self._before, self._behind = boundaries
        # methods of the instance, not of a subclass: vLLM's workers make the runner themselves
        self._vllm_update_states = runner._update_states
        self._vllm_prepare_inputs = runner._prepare_inputs
        self._vllm_sample_tokens = runner.sample_tokens
        self._vllm_dummy_run = runner._dummy_run
        runner._update_states = self._update_states
        runner._prepare_inputs = self._prepare_inputs
        runner.sample_tokens = self._sample_tokens
        runner._dummy_run = self._dummy_run
        if self._before is not None:
            self._vllm_gather = runner.sync_and_gather_intermediate_tensors
            runner.sync_and_gather_intermediate_tensors = self._gather_intermediate_tensors
        if self._behind is not None:
            self._vllm_execute_model = runner.execute_model
            runner.execute_model = self._execute_model
        # these are n-gram drafts, the only ones that the server lets in: vLLM schedules synchronously then, so the accepted
        # tokens are on the host when it books them
        if runner.speculative_config is not None:
            self._vllm_bookkeeping_sync = runner._bookkeeping_sync
            runner._bookkeeping_sync = self._settle

    def is_running(self, request_id: str) -> bool:
        """Tell whether the runner knows a request."""
        return request_id in self._runner.requests

    def _known(self, request_id: str) -> KnownRequest:
        request = self._runner.requests[request_id]
        params = request.sampling_params
        return KnownRequest((params and params.extra_args) or {}, request.prompt_token_ids or [])

    def _update_states(self, scheduler_output: Any) -> Any:
        begin_serving()  # at the first step the engine has started
        # before vLLM's own update, which may copy other blocks into those that are wiped
        wipe_blocks(self._runner, getattr(scheduler_output, WIPED, ()))
        # before requests are admitted: an id that has ended may come again in this very step, as another request, and its
        # number in the tables is free for one that comes
        self._tables.requests.end(scheduler_output.finished_req_ids)
        self._tables.requests.preempt(scheduler_output.preempted_req_ids or ())
        return self._vllm_update_states(scheduler_output)

    def _prepare_inputs(self, scheduler_output: Any, num_scheduled_tokens: NDArray[np.int32]) -> Any:
        prepared = self._vllm_prepare_inputs(scheduler_output, num_scheduled_tokens)
        runner, batch = self._runner, self._runner.input_batch
        num_requests = len(batch.req_ids)
        self._steps.begin(
            StepInputs(
                batch.req_ids,
                num_scheduled_tokens,
                batch.num_computed_tokens_cpu[:num_requests],
                runner.query_start_loc.gpu[: num_requests + 1],
                runner.positions,
                runner.input_ids.gpu,
            )
        )
        return prepared

    def _dummy_run(self, *args: Any, **kwargs: Any) -> Any:
        with self._steps.dummy_step(kwargs.get("is_profile", False)):
            return self._vllm_dummy_run(*args, **kwargs)

    def _settle(self, scheduler_output: Any, *args: Any) -> Any:
        steered = self._steps.batch.steered
        # vLLM's booking appends the sampled tokens to the requests' output
        num_before = {request_id: self._num_output(request_id) for request_id in steered}
        booked = self._vllm_bookkeeping_sync(scheduler_output, *args)
        sampled: list[list[int]] = booked[3]
        kept_to = torch.full((self._tables.programs.num_programs,), FOREVER, dtype=torch.int64)
        for request_id, request in steered.items():
            own = sampled[self._runner.input_batch.req_id_to_index[request_id]]
            # none in a step that computes only a part of the prompt, which has no drafts either
            if own:
                params, prompt_len = self._runner.requests[request_id].sampling_params, request.program.prompt_len
                len_before = prompt_len + num_before[request_id]
                num_kept = AnswerEnd.from_params(params, prompt_len).num_kept(own, len_before)
                # the answer's newest token is not counted: it has not been fed yet, or would not have been without drafts
                kept_to[request.number] = len_before + num_kept - 1
        self._steps.settle(kept_to.to(self._runner.device))
        return booked

    def _num_output(self, request_id: str) -> int:
        return len(self._runner.requests[request_id].output_token_ids)

    def _gather_intermediate_tensors(self, num_tokens: int, intermediate_tensors: Any, *args: Any) -> Any:
        if intermediate_tensors is not None and self._steps.batch.steered:
            # before vLLM copies the tensors by their names, of which it knows the model's alone: `unpack` takes ours out
            self._before.unpack(intermediate_tensors.tensors, self._steps.batch.contents)  # type: ignore[union-attr]
        return self._vllm_gather(num_tokens, intermediate_tensors, *args)

    def _execute_model(self, *args: Any, **kwargs: Any) -> Any:
        output = self._vllm_execute_model(*args, **kwargs)
        if isinstance(output, IntermediateTensors) and self._steps.batch.steered:
            output.tensors |= self._behind.pack(self._steps.batch.contents)  # type: ignore[union-attr]
        self._steps.forget()
        return output

    def _sample_tokens(self, grammar_output: Any) -> Any:
        # taken before vLLM samples, which clears it, and whose booking (`_settle`) changes the tables
        state = self._runner.execute_model_state
        fetch = self._steps.collect(None if state is None else state.hidden_states)
        output = self._vllm_sample_tokens(grammar_output)
        # told once, at the last stage: a step without tokens returns an output that all such steps share
        self._steps.forget()
        return output if fetch is None else with_report(output, fetch)
